"""`pdmesh bench parity`: does a mesh answer the same wherever prompts are split?"""

from collections.abc import Mapping
from pathlib import Path

import aiohttp
import msgspec
import uvloop
from rich.console import Console

from common.clock import SystemClock
from common.config.types import GatewayConfig, InstanceConfig, MeshConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.kv.layout import KVOrder
from common.messages.control import Role
from services.bench.occasion import this_occasion
from services.bench.parity.questions import QUESTIONS
from services.bench.parity.rows import parity_rows, parity_summary, parity_table
from services.bench.parity.run import Outcome, ask_everything
from services.bench.repeats import OnStep
from services.bench.table import rows_table
from services.cli.bench.progress import bench_progress
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable, write_rows
from services.launch.local import LaunchOptions, LocalMesh
from services.launch.model import prepare_model

_COLUMNS = {"asked": "question", "split": "split", "streamed": "streamed", "difference": "difference"}


class ParityFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh bench parity`."""

    json: Path
    url: str | None
    """A running mesh that lets requests say their split; None: one is started here."""
    model: str
    markdown: bool


def run_parity(flags: ParityFlags, environ: Mapping[str, str]) -> ExitCode:
    """Ask, write the JSON, show what differs; FAILED where anything does. Raises PdmeshError."""
    check_writable("--json", flags.json)
    occasion = this_occasion()
    with bench_progress(Console(stderr=True)) as on_step:
        outcomes = uvloop.run(_asked(flags, environ, on_step))
    rows, summary = parity_rows(outcomes), parity_summary(outcomes)
    command = f"pdmesh bench parity{'' if flags.url is None else ' --url URL'} --model {flags.model}"
    write_rows(flags.json, command, rows, summary, occasion)
    _show(outcomes, flags.markdown, Console())
    return ExitCode.DONE if summary["same_answers"] == summary["answers"] else ExitCode.FAILED


async def _asked(flags: ParityFlags, environ: Mapping[str, str], on_step: OnStep) -> list[Outcome]:
    if flags.url is not None:
        return await _ask_at(flags.url, flags.model, on_step, environ.get("PDMESH_API_KEY"))
    on_step("starting a mesh")
    options = LaunchOptions(model_folder=await prepare_model(flags.model, environ))
    config = parity_mesh(flags.model)
    async with LocalMesh(config, environ=environ, clock=SystemClock(), options=options) as mesh:
        return await _ask_at(mesh.url, flags.model, on_step)


async def _ask_at(url: str, model: str, on_step: OnStep, key: str | None = None) -> list[Outcome]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        client = aiohttp.ClientSession(url, headers=headers)
    except ValueError as error:
        raise ConfigError(f"--url: {url!r} is not the address of a gateway, as http://HOST:PORT") from error
    async with client:
        return await ask_everything(client, model, QUESTIONS, on_step)


def parity_mesh(model: str) -> MeshConfig:
    """A P and a D in float32 whose KV lies in unlike ways, without kept prefixes: all KV is handed over each time."""
    instances = (
        InstanceConfig(id=InstanceId("p0"), role=Role.PREFILL, block_size=16, order=KVOrder.NHD, prefix_cache=False),
        InstanceConfig(id=InstanceId("d0"), role=Role.DECODE, block_size=64, order=KVOrder.HND, prefix_cache=False),
    )
    gateway = GatewayConfig(http="127.0.0.1:0", control="tcp://127.0.0.1:0", allow_placement_override=True)
    return MeshConfig(model=model, gateway=gateway, instances=instances)


def _show(outcomes: list[Outcome], markdown: bool, console: Console) -> None:
    if markdown:
        print(parity_table(outcomes), end="")
    elif strange := [row for row in parity_rows(outcomes) if not row["same"]]:
        console.print(rows_table("not the same", strange, _COLUMNS))
    same = sum(outcome.difference is None for outcome in outcomes)
    worst = max((outcome.logprob_error for outcome in outcomes), default=0.0)
    console.print(f"{same} of {len(outcomes)} answers are those without a split; largest logprob error {worst:.1e}")
