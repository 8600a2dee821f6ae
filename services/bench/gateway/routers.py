"""The Rust routers, where they are installed: in prefill-decode mode before two mock workers."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

from services.bench.gateway.fixed_answers import FixedAnswer
from services.bench.gateway.questions import PATH, WHOLE
from services.bench.gateway.server_process import Server, raw_server, running
from services.bench.gateway.system import System
from services.bench.transfer.errors import BenchError
from services.launch.settle import find_port

_HOST = "127.0.0.1"
_READY_S = 30.0
_ASK_EVERY_S = 0.2
_VERSION_S = 20.0
_KV_TRANSFER = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "p0",
    "remote_block_ids": [1],
    "remote_host": _HOST,
    "remote_port": 9,
}


class Router(msgspec.Struct, frozen=True):
    """How one router is started; `arguments` take the workers (P, D) and free ports (its own, of its metrics)."""

    name: str
    settings: str
    arguments: Callable[[Server, Server, int, int], Sequence[str]]


def _common(metrics_port: int) -> Sequence[str]:
    metrics = ("--prometheus-host", _HOST, "--prometheus-port", str(metrics_port))
    return ("--policy", "round_robin", *metrics, "--log-level", "error")


def _smg(prefill: Server, decode: Server, port: int, metrics_port: int) -> Sequence[str]:
    return (
        *("launch", "--host", _HOST, "--port", str(port), "--pd-disaggregation"),
        *("--prefill", prefill.url, "9001", "--decode", decode.url),
        *_common(metrics_port),
    )


def _vllm_router(prefill: Server, decode: Server, port: int, metrics_port: int) -> Sequence[str]:
    return (
        *("--host", _HOST, "--port", str(port), "--vllm-pd-disaggregation"),
        *("--prefill", prefill.url, "--decode", decode.url),
        *_common(metrics_port),
    )


ROUTERS = (
    Router("vllm-router", "--vllm-pd-disaggregation --policy round_robin: P, then D", _vllm_router),
    Router("smg", "launch --pd-disaggregation --policy round_robin: P and D at once", _smg),
)


def find_router(router: Router, environ: Mapping[str, str]) -> Path | None:
    """Its program: on the path, or beside this interpreter."""
    folders = f"{environ.get('PATH', '')}:{Path(sys.executable).parent}"
    found = shutil.which(router.name, path=folders)
    return None if found is None else Path(found)


@asynccontextmanager
async def router_system(
    router: Router, program: Path, answers: Sequence[FixedAnswer], scratch: Path
) -> AsyncIterator[System]:
    """The router with its workers, serving. Raises BenchError with its last words where it does not."""
    log = scratch / f"{router.name}.log"
    port, metrics_port = find_port(_HOST, 0), find_port(_HOST, 0)
    async with (
        raw_server(_of_prefill(answers), scratch / f"{router.name}-p.json") as prefill,
        raw_server(answers, scratch / f"{router.name}-d.json") as decode,
    ):
        command = (str(program), *router.arguments(prefill, decode, port, metrics_port))
        with log.open("wb") as out:
            async with running(command, out, out) as process:
                system = System(
                    router.name,
                    await asyncio.to_thread(_version, router.name, program),
                    router.settings,
                    f"http://{_HOST}:{port}",
                    process.pid,
                )
                if not await _serves(system, process):
                    words = log.read_text(errors="replace")[-800:]
                    raise BenchError(f"{router.name} did not answer within {_READY_S} s; its last words:\n{words}")
                yield system


def _of_prefill(answers: Sequence[FixedAnswer]) -> list[FixedAnswer]:
    """With what vLLM's prefill answers besides; without it vllm-router writes a warning for each request."""
    told = b',"kv_transfer_params":' + msgspec.json.encode(_KV_TRANSFER) + b"}"
    return [
        msgspec.structs.replace(answer, body=answer.body.rstrip().removesuffix(b"}") + told) if answer.body else answer
        for answer in answers
    ]


async def _serves(system: System, process: asyncio.subprocess.Process) -> bool:
    """Whether it answers a question before long."""
    headers = {"Content-Type": "application/json"}
    try:
        async with asyncio.timeout(_READY_S), aiohttp.ClientSession(system.url) as client:
            while process.returncode is None:
                try:
                    async with client.post(PATH, data=WHOLE.body(), headers=headers) as response:
                        if response.status == 200:
                            return True
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(_ASK_EVERY_S)
    except TimeoutError:
        pass
    return False


def _version(name: str, program: Path) -> str:
    """As the interpreter beside the program knows it; empty where there is none."""
    script = f"from importlib.metadata import version; print(version({name!r}))"
    try:
        done = subprocess.run(
            [str(program.parent / "python"), "-c", script], capture_output=True, text=True, timeout=_VERSION_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
