"""`pdmesh bench`: its commands and their flags. Each imports what it needs when it runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from services.cli.examples import examples

JsonFile = Annotated[Path, typer.Option("--json", help="Where to write the report.", dir_okay=False)]
DataFolder = Annotated[Path | None, typer.Option(help="Folder of public traces; default: $PDMESH_DATA.")]
Quick = Annotated[bool, typer.Option("--quick", help="To see that it runs; not for figures.")]

bench_app = typer.Typer(name="bench", help="Measurements.", no_args_is_help=True)


@bench_app.command("transfer", epilog=examples("bench transfer"))
def bench_transfer(
    json: JsonFile,
    peers: Annotated[bool, typer.Option("--peers", help="Beside other libraries, those that are installed.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, to see that it runs; not for figures.")] = False,
    segment_bytes: Annotated[int, typer.Option(min=64 << 10, help="Largest piece on the wire.")] = 8 << 20,
) -> None:
    """Measure how fast KV moves by every backend, beside memcpy and one raw TCP connection."""
    from services.cli.bench.transfer import TransferFlags, run_transfer

    raise typer.Exit(run_transfer(TransferFlags(json, peers, quick, segment_bytes)))


@bench_app.command("engine", epilog=examples("bench engine"))
def bench_engine(
    json: JsonFile,
    peers: Annotated[bool, typer.Option("--peers", help="Beside transformers and llama.cpp.")] = False,
    quick: Quick = False,
    model: Annotated[str, typer.Option(help="A built-in name, a folder, a .gguf file, or a hub id.")] = "smollm2",
    threads: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repeats.")] = 5,
    workloads: Annotated[str, typer.Option(help="Which of A, B, C and D.")] = "ABCD",
    data: DataFolder = None,
    llama_python: Annotated[
        Path | None, typer.Option(help="An interpreter that has llama-cpp-python; default: this one.")
    ] = None,
) -> None:
    """Measure the CPU engine in bfloat16: batches, one request, long contexts; prefill and decode apart."""
    from services.cli.bench.engine import EngineFlags, run_engine

    flags = EngineFlags(json, peers, quick, model, threads, rounds, workloads, data, llama_python)
    raise typer.Exit(run_engine(flags, _environ()))


@bench_app.command("policies", epilog=examples("bench policies"))
def bench_policies(
    json: JsonFile,
    simulated: Annotated[bool, typer.Option("--simulated", help="The Cronus paper's table, in the simulator.")] = False,
    ablations: Annotated[bool, typer.Option("--ablations", help="Each choice varied, in the simulator.")] = False,
    real: Annotated[bool, typer.Option("--real", help="Meshes of processes on two cores of this machine.")] = False,
    costs: Annotated[bool, typer.Option("--costs", help="What a decision costs; how fast the simulator is.")] = False,
    data: DataFolder = None,
    quick: Quick = False,
    model: Annotated[str | None, typer.Option(help="With --real: smollm2, unless given.")] = None,
    requests: Annotated[
        int | None, typer.Option(min=2, help="With --real: of each run; 96, with --mesh the whole trace.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="With --real: interleaved repeats.")] = 5,
    slowdown: Annotated[float | None, typer.Option(min=1, help="With --real: of the slow device; 3.")] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="With --real: a folder with high.json and low.json, in place of measuring.")
    ] = None,
    mesh: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --real: measure this mesh.yaml in place of the built-in pair; give several to compare them.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    trace: Annotated[
        str | None, typer.Option(help="With --mesh: a trace's path, a public one's name, or synthetic[:SHAPE].")
    ] = None,
    divide: Annotated[int | None, typer.Option(min=1, help="With --mesh: divide every length by this.")] = None,
    rate: Annotated[float | None, typer.Option(help="With --mesh: requests per second, as a Poisson process.")] = None,
    all_at_once: Annotated[bool, typer.Option("--all-at-once", help="With --mesh: at 0 s (the default).")] = False,
    recorded: Annotated[bool, typer.Option("--recorded", help="With --mesh: at the trace's own times.")] = False,
) -> None:
    """Compare Cronus with data parallelism, pipeline parallelism and disaggregation, tuned alike; or given meshes."""
    kind = _one_of({"simulated": simulated, "ablations": ablations, "real": real, "costs": costs})
    of_mesh = {"--trace": trace, "--divide": divide, "--rate": rate}
    of_mesh |= {"--all-at-once": all_at_once or None, "--recorded": recorded or None}
    of_pair = {"--model": model, "--slowdown": slowdown, "--profiles": profiles}
    _check_mesh_options(kind if mesh else None, of_pair=of_pair, of_mesh=of_mesh)
    if mesh:
        from services.cli.bench.mesh import MeshFlags, run_bench_mesh

        mesh_flags = MeshFlags(
            mesh=tuple(mesh),
            json=json,
            trace=trace or "synthetic",
            requests=requests,
            divide=divide or 1,
            rate=rate,
            all_at_once=all_at_once,
            recorded=recorded,
            rounds=rounds,
            quick=quick,
            data=data,
        )
        raise typer.Exit(run_bench_mesh(mesh_flags, _environ()))
    from services.cli.bench.policies import PoliciesFlags, run_policies

    flags = PoliciesFlags(
        kind=kind,
        json=json,
        data=data,
        quick=quick,
        model=model or "smollm2",
        requests=requests or 96,
        rounds=rounds,
        slowdown=slowdown or 3.0,
        profiles=profiles,
    )
    raise typer.Exit(run_policies(flags, _environ()))


@bench_app.command("scheduler", epilog=examples("bench scheduler"))
def bench_scheduler(
    json: JsonFile,
    simulated: Annotated[bool, typer.Option("--simulated", help="Two clusters, in the simulator.")] = False,
    real: Annotated[bool, typer.Option("--real", help="Two processes on two cores of this machine.")] = False,
    quick: Quick = False,
    model: Annotated[str, typer.Option(help="With --real.")] = "smollm2",
    slowdown: Annotated[
        list[float] | None, typer.Option(min=1, help="With --real: of the slow instance; several times. 1.67 and 3.45.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="With --real: NAME[,NAME...], round_robin among them.")
    ] = "round_robin,dp,jsq,capacity",
    requests: Annotated[
        int | None, typer.Option(min=8, help="With --real: of each run; unless given, enough for each slowdown.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="With --real: interleaved repeats.")] = 5,
) -> None:
    """Compare the schedulers on instances of unlike speed: round robin, its rivals, and by capacity."""
    from services.cli.bench.scheduler import SchedulerFlags, run_scheduler

    flags = SchedulerFlags(
        kind=_one_of({"simulated": simulated, "real": real}),
        json=json,
        quick=quick,
        model=model,
        slowdowns=tuple(slowdown or (1.67, 3.45)),
        policies=tuple(word.strip() for word in policy.split(",")),
        requests=requests,
        rounds=rounds,
    )
    raise typer.Exit(run_scheduler(flags, _environ()))


@bench_app.command("planner", epilog=examples("bench planner"))
def bench_planner(
    json: JsonFile,
    data: Annotated[
        Path | None, typer.Option(help="Folder whose gpu/ holds the measured tables; default: $PDMESH_DATA.")
    ] = None,
    aiconfigurator: Annotated[
        Path | None, typer.Option(help="An interpreter that has aiconfigurator, to compare with.", dir_okay=False)
    ] = None,
    quick: Quick = False,
) -> None:
    """Plan for mixed clusters, simulate the plans, and compare the costs behind them with others' measurements."""
    from services.cli.bench.planner import PlannerFlags, run_bench_planner

    flags = PlannerFlags(json=json, data=data, aiconfigurator=aiconfigurator, quick=quick)
    raise typer.Exit(run_bench_planner(flags, _environ()))


@bench_app.command("gateway", epilog=examples("bench gateway"))
def bench_gateway(
    json: JsonFile,
    quick: Quick = False,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repeats.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Of one run.")] = 2.0,
) -> None:
    """Measure what the gateway adds, before workers that answer at once; beside a raw handler and Rust routers."""
    from services.cli.bench.gateway import GatewayFlags, run_gateway

    raise typer.Exit(run_gateway(GatewayFlags(json, quick, rounds, seconds), _environ()))


@bench_app.command("serve", epilog=examples("bench serve"))
def bench_serve(
    json: JsonFile,
    quick: Quick = False,
    model: Annotated[str, typer.Option(help="A built-in name, a folder, a .gguf file, or a hub id.")] = "smollm2",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    prompt_tokens: Annotated[int | None, typer.Option(help="Of each request; 256.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Of each request; 64.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Requests in the mesh at a time; 8.")] = None,
    turns: Annotated[int | None, typer.Option(help="Requests of each client in a run: at least 3; 5.")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Sequences decoded at once; 16.")] = None,
    slo_ttft: Annotated[float | None, typer.Option(help="For goodput: seconds to the first token; 2.")] = None,
    slo_tpot: Annotated[float | None, typer.Option(help="For goodput: seconds for each other token; 0.1.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repeats.")] = 5,
) -> None:
    """Measure a whole mesh of two cores over HTTP, beside each stage alone, and beside one engine with both cores."""
    from services.cli.bench.serve import ServeFlags, run_bench_serve

    flags = ServeFlags(
        json=json,
        quick=quick,
        model=model,
        dtype=dtype,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        clients=clients,
        turns=turns,
        max_batch=max_batch,
        slo_ttft=slo_ttft,
        slo_tpot=slo_tpot,
        rounds=rounds,
    )
    raise typer.Exit(run_bench_serve(flags, _environ()))


@bench_app.command("prefixes", epilog=examples("bench prefixes"))
def bench_prefixes(
    json: JsonFile,
    trace: Annotated[Path | None, typer.Option(help="A Mooncake trace.", exists=True, dir_okay=False)] = None,
    data: DataFolder = None,
    quick: Quick = False,
    model: Annotated[str, typer.Option(help="A built-in name, a folder, a .gguf file, or a hub id.")] = "smollm2",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    kv_memory: Annotated[str, typer.Option(help="Of each instance.")] = "256MiB",
    requests: Annotated[int, typer.Option(min=8, help="The first so many of the trace that are short enough.")] = 400,
    rate: Annotated[float, typer.Option(min=0.01, help="Requests a second.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repeats.")] = 3,
) -> None:
    """Measure what the prefix cache is worth: prompts that recur as in a Mooncake trace, with it and without."""
    from services.cli.bench.prefixes import PrefixesFlags, run_prefixes

    flags = PrefixesFlags(
        json=json,
        trace=trace,
        data=data,
        quick=quick,
        model=model,
        dtype=dtype,
        kv_memory=kv_memory,
        requests=requests,
        rate=rate,
        rounds=rounds,
    )
    raise typer.Exit(run_prefixes(flags, _environ()))


@bench_app.command("parity", epilog=examples("bench parity"))
def bench_parity(
    json: JsonFile,
    url: Annotated[str | None, typer.Option(help="A mesh that runs, with gateway.allow_placement_override.")] = None,
    model: Annotated[str, typer.Option(help="A built-in name, a folder, a .gguf file, or a hub id.")] = "smollm2",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/parity.md.")] = False,
) -> None:
    """Ask for everything that the API can do with every kind of split, and compare with answers without a split."""
    from services.cli.bench.parity import ParityFlags, run_parity

    raise typer.Exit(run_parity(ParityFlags(json=json, url=url, model=model, markdown=markdown), _environ()))


def _one_of(asked: Mapping[str, bool]) -> str:
    """The one flag that is given. Raises ConfigError."""
    from common.errors import ConfigError

    kinds = [name for name, chosen in asked.items() if chosen]
    if len(kinds) != 1:
        *others, last = (f"--{name}" for name in asked)
        raise ConfigError(f"give one of {', '.join(others)} and {last}")
    return kinds[0]


def _check_mesh_options(
    kind: str | None, *, of_pair: Mapping[str, object | None], of_mesh: Mapping[str, object | None]
) -> None:
    """Raise ConfigError for options that do not fit; `kind` is None without --mesh."""
    from common.errors import ConfigError

    strange = [option for option, value in (of_mesh if kind is None else of_pair).items() if value is not None]
    if kind is None and strange:
        raise ConfigError(f"{', '.join(strange)}: only for meshes; name one with --mesh, or drop this")
    if kind is not None and kind != "real":
        raise ConfigError(f"--mesh with --{kind}: a mesh is measured on this machine; give --real")
    if strange:
        raise ConfigError(f"{', '.join(strange)}: with --mesh its file says that; drop this")


def _environ() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251 - a composition root
