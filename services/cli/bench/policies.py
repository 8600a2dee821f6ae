"""`pdmesh bench policies`: Cronus and its rivals, simulated or as meshes of this machine."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from rich.console import Console

from common.clock import SystemClock
from common.errors import ConfigError
from services.bench.occasion import this_occasion
from services.bench.policies.predicted import KVShape, best_dp_weight, bounds_of, predict
from services.bench.policies.real import RealRun, run_real
from services.bench.policies.real_rows import OFFLINE, RealFacts, real_rows, real_summary
from services.bench.policies.run import SimulatedLoads, ablations_report, costs_report, simulated_report
from services.bench.policies.systems import Devices, System, mesh_of
from services.bench.report import Report, Row, write_report
from services.bench.table import rows_table
from services.cli.bench.profiles import measured_profiles
from services.cli.bench.progress import bench_progress
from services.cli.flags import data_folder
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable
from services.launch.model import prepare_model
from services.scheduling.profiles.profile import Profile, decode_profile
from services.simulator.links import LinkSpec
from services.simulator.workload.arrivals import all_at_once, poisson
from services.simulator.workload.requests import Workload, first, scaled
from services.simulator.workload_choice import SYNTHETIC, WorkloadChoice, choose_workload

SIMULATED, ABLATIONS, REAL, COSTS = "simulated", "ablations", "real", "costs"
_PAPER: Final = "azure_conv_first1000"
_OTHERS: Final = {"arxiv": "prefill_heavy", "sharegpt": "decode_heavy"}
_SEED: Final = 1
_RATE_SHARE: Final = 0.7
_DIVISOR: Final = 8
_LOCAL_LINK: Final = LinkSpec(1e9, 1e-3)
"""Between processes of one machine; at tens of kilobytes per token it hardly counts."""

_COLUMNS = {
    "pair": "pair",
    "model": "model",
    "system": "system",
    "load": "load",
    "rate": "rate_rps",
    "req/s": "throughput_rps",
    "predicted": "predicted_throughput_rps",
    "bound": "bound_rps",
    "TTFT P99 s": "ttft_p99_s",
    "TBT P99 s": "tbt_p99_s",
    "dp weight": "dp_weight",
}
_ABLATION_COLUMNS = {
    "pair": "pair",
    "model": "model",
    "ablation": "ablation",
    "setting": "setting",
    "req/s": "throughput_rps",
    "TTFT P99 s": "ttft_p99_s",
    "TBT P99 s": "tbt_p99_s",
    "split": "split_share",
}


class PoliciesFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh bench policies`."""

    kind: str
    json: Path
    data: Path | None
    quick: bool
    model: str
    requests: int
    rounds: int
    slowdown: float
    profiles: Path | None


def run_policies(flags: PoliciesFlags, environ: Mapping[str, str]) -> ExitCode:
    """Measure or simulate, write the JSON, show it. Raises PdmeshError."""
    check_writable("--json", flags.json)
    console = Console(stderr=True)
    command = f"pdmesh bench policies --{flags.kind}{' --quick' * flags.quick}"
    data = data_folder(flags.data, environ)
    with bench_progress(console) as on_step:
        if flags.kind == REAL:
            report = uvloop.run(_real(flags, command, data, environ, on_step, console))
        elif flags.kind == COSTS:
            report = uvloop.run(costs_report(command, SystemClock(), on_step, quick=flags.quick))
        else:
            make = simulated_report if flags.kind == SIMULATED else ablations_report
            report = make(command, _loads(data, quick=flags.quick), on_step)
    write_report(report, flags.json)
    _show(report, Console())
    return ExitCode.DONE


def _loads(data: Path | None, *, quick: bool) -> SimulatedLoads:
    """The public traces where a folder has them, else the built-in shapes with the same statistics."""
    return SimulatedLoads(
        _lengths(_PAPER, _PAPER, data), tuple(_lengths(name, shape, data) for name, shape in _OTHERS.items()), quick
    )


def _lengths(trace: str, shape: str, data: Path | None) -> Workload:
    return choose_workload(WorkloadChoice(trace if data else f"{SYNTHETIC}:{shape}", data=data, seed=_SEED))


# ---------------------------------------------------------------- on this machine


async def _real(
    flags: PoliciesFlags,
    command: str,
    data: Path | None,
    environ: Mapping[str, str],
    on_step: Callable[[str], None],
    console: Console,
) -> Report:
    occasion = this_occasion()
    devices = Devices(model=flags.model, slowdown=flags.slowdown)
    lengths = first(scaled(_lengths(_PAPER, _PAPER, data), _DIVISOR), 12 if flags.quick else flags.requests)
    folder = await prepare_model(flags.model, environ)
    with tempfile.TemporaryDirectory(prefix="pdmesh-profiles-") as temporary:
        files = await _profiles(flags, devices, folder, environ, Path(temporary), on_step, console)
        profiles = {name: decode_profile(file.read_bytes(), str(file)) for name, file in files.items()}
        run, facts = _plan(flags, devices, folder, files, profiles, lengths)
        served = await run_real(run, environ, SystemClock(), on_step)
    predicted = {
        (item.system, item.load): predict(
            item.system,
            devices,
            profiles,
            _kv_shape(folder),
            _LOCAL_LINK,
            facts.loads[item.load],
            dp_weight=facts.dp_weight,
        )
        for item in served
    }
    rows = real_rows(served, predicted, facts)
    return occasion.report(command, rows, real_summary(rows) | msgspec.structs.asdict(facts.bounds))


async def _profiles(
    flags: PoliciesFlags,
    devices: Devices,
    folder: Path,
    environ: Mapping[str, str],
    temporary: Path,
    on_step: Callable[[str], None],
    console: Console,
) -> dict[str, Path]:
    """The files of both devices: those given, else measured now, while nothing else runs on this mesh."""
    where = flags.profiles or temporary
    files = {"fast": where / "high.json", "slow": where / "low.json"}
    if flags.profiles is not None:
        if missing := [str(file) for file in files.values() if not file.is_file()]:
            raise ConfigError(f"--profiles has no {' and no '.join(missing)}; `pdmesh profile` writes such files")
        return files
    config = msgspec.structs.replace(mesh_of(System.LOW_HIGH, devices, {}), policy="fixed")
    repeats = 2 if flags.quick else 4
    await measured_profiles(
        config, folder, where, environ, on_step, repeats=repeats, longest=640, shows=console.is_terminal
    )
    return files


def _plan(
    flags: PoliciesFlags,
    devices: Devices,
    folder: Path,
    files: Mapping[str, Path],
    profiles: Mapping[str, Profile],
    lengths: Workload,
) -> tuple[RealRun, RealFacts]:
    kv, offline = _kv_shape(folder), all_at_once(lengths)

    def throughput(system: System, weight: float) -> float:
        return predict(system, devices, profiles, kv, _LOCAL_LINK, offline, dp_weight=weight).throughput_rps

    weight = best_dp_weight(lambda share: throughput(System.DP, share))
    rate = _RATE_SHARE * min(throughput(System.CRONUS, weight), throughput(System.DP, weight))
    loads = {OFFLINE: offline, "rate": poisson(lengths, rate, _SEED)}
    keeping_up = tuple(system for system in System if throughput(system, weight) > rate)
    run = RealRun(
        devices=devices,
        model_folder=folder,
        profiles=files,
        loads=loads,
        systems_of={OFFLINE: tuple(System), "rate": keeping_up},
        rounds=1 if flags.quick else flags.rounds,
        dp_weight=weight,
        vocab_size=_model_config(folder)["vocab_size"],
    )
    facts = RealFacts(
        devices, loads, {OFFLINE: None, "rate": rate}, weight, bounds_of(profiles["fast"], devices, lengths)
    )
    return run, facts


def _kv_shape(folder: Path) -> KVShape:
    config = _model_config(folder)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    layers = config["num_hidden_layers"]
    return KVShape(layers, 2 * layers * config["num_key_value_heads"] * head_dim * 2)


def _model_config(folder: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=dict)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{str(folder)!r} holds no readable config.json: {error}") from error


# ---------------------------------------------------------------- for a person


def _show(report: Report, console: Console) -> None:
    for kind, columns in (("policy", _COLUMNS), ("ablation", _ABLATION_COLUMNS)):
        rows = [row for row in report.rows if row["kind"] == kind]
        if rows:
            console.print(
                rows_table(kind, rows, {head: column for head, column in columns.items() if _any(rows, column)})
            )
    ratios: list[Row] = [{"ratio": name, "value": value} for name, value in report.summary.items()]
    console.print(rows_table("summary", ratios, {"ratio": "ratio", "value": "value"}))


def _any(rows: list[Row], column: str) -> bool:
    return any(row.get(column) is not None for row in rows)
