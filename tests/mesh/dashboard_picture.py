"""Makes docs/pictures/dashboard.png: `python -m tests.mesh.dashboard_picture FILE [SECONDS]`.

A mesh in one process, with the engine that has no model and steps of a few milliseconds, under requests at random; near
the end one instance drains and one is stopped without a word.
"""

import asyncio
import random
import sys
import tempfile
from pathlib import Path

import aiohttp
import msgspec

from common.config.types import InstanceConfig
from common.ids import InstanceId
from services.engine.runner import Runner
from services.engine.twin.deterministic_model import write_deterministic_model
from tests.mesh.chromium import open_page, running_chromium
from tests.mesh.inprocess import InProcessMesh, deterministic, in_process_mesh, mesh_config

WIDTH = 1240


def slow(instance: InstanceConfig) -> Runner:
    return deterministic(instance, step_seconds=0.012 if instance.id != "d0" else 0.02)


async def ask(mesh: InProcessMesh, dice: random.Random) -> None:
    prompt = "".join(dice.choice("abcdefgh ") for _ in range(dice.randint(20, 160)))
    try:
        await mesh.complete(prompt, ignore_eos=True, max_tokens=dice.randint(20, 70))
    except aiohttp.ClientError:
        pass


async def load(mesh: InProcessMesh, seconds: float) -> None:
    """Requests at random, with a crest in the middle."""
    dice, asked = random.Random(7), set[asyncio.Task[None]]()
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (at := (loop.time() - began) / seconds) < 1:
        rate = 4 + 10 * max(0.0, 1 - abs(at - 0.55) / 0.3)
        task = asyncio.ensure_future(ask(mesh, dice))
        asked.add(task)
        task.add_done_callback(asked.discard)
        await asyncio.sleep(dice.expovariate(rate))


async def picture(folder: Path, seconds: float) -> bytes:
    config = mesh_config(prefill=2, decode=3, lease_s=1.0, deadline_s=60.0, queue=256)
    # Pieces as large as they are by default: those of the tests are small, and so would be the bandwidth shown.
    transfer = msgspec.structs.replace(config.transfer, segment_bytes=8 << 20)
    config = msgspec.structs.replace(config, model="an engine without a model", split=0.8, transfer=transfer)
    model = write_deterministic_model(folder / "model")
    with running_chromium(folder / "chromium") as devtools:
        async with in_process_mesh(config, model, build=slow) as mesh, open_page(devtools) as page:
            loading = asyncio.ensure_future(load(mesh, seconds))
            await asyncio.sleep(seconds - 6)
            (await mesh.client.post("/instances/d1/drain")).close()
            await mesh.crash_worker(InstanceId("d2"))
            await asyncio.sleep(3)
            await page.look(WIDTH)
            await page.go(f"{mesh.gateway.url}/dashboard")
            await page.until("document.querySelector('.lost') !== null && document.querySelector('.draining') !== null")
            shot = await page.picture()
            await loading
            (await mesh.client.post("/instances/d1/resume")).close()
            await mesh.until(lambda: not mesh.loads()[InstanceId("d1")].draining)
            return shot


def main() -> None:
    file = Path(sys.argv[1])
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 150.0
    with tempfile.TemporaryDirectory() as folder:
        file.write_bytes(asyncio.run(picture(Path(folder), seconds)))
    print(file)


if __name__ == "__main__":
    main()
