"""The command line. Each command imports what it needs when it runs: the gateway must never load torch."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import PdmeshError
from common.messages.control import Role
from services.cli.bench.commands import bench_app
from services.cli.examples import examples
from services.cli.keys import keys_app
from services.cli.outcome import ExitCode, report

if TYPE_CHECKING:
    from services.cli.gateway_client import Gateway

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="mesh.yaml; without it every key has its default.", dir_okay=False)
]
InstanceName = Annotated[str | None, typer.Option("--instance", help="Its id in mesh.yaml, where there are several.")]
ModelFolder = Annotated[Path | None, typer.Option("--model-folder", hidden=True, help="The prepared model.")]
ParentFd = Annotated[int | None, typer.Option("--parent-fd", hidden=True, help="End when this pipe closes.")]
GatewayUrl = Annotated[str, typer.Option("--url", help="Where the gateway serves.", envvar="PDMESH_URL")]
DEFAULT_URL = "http://127.0.0.1:8000"
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", metavar="KEY", help="Where the gateway asks for one.", envvar="PDMESH_API_KEY"),
]

app = typer.Typer(
    name="pdmesh",
    help="Serve a large language model with prefill and decode in different processes.",
    epilog="Exit codes: 0 done; 1 failed, or not ready; 2 wrong usage or configuration; 130 interrupted.\n\n"
    "Environment: PDMESH_URL and PDMESH_API_KEY for commands that ask a gateway; PDMESH_MODEL, "
    "PDMESH_GATEWAY__HTTP and so on for keys of mesh.yaml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(name="model", help="Models on this machine.", no_args_is_help=True)
config_app = typer.Typer(name="config", help="The configuration.", no_args_is_help=True)
app.add_typer(model_app)
app.add_typer(config_app)
app.add_typer(keys_app)
app.add_typer(bench_app)


@app.command(epilog=examples("up"))
def up(
    config: ConfigFile = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="HTTP port; 0 takes a free one.")] = None,
    model: Annotated[str | None, typer.Option(help="A built-in name, a folder, a .gguf file, or a hub id.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    prefill: Annotated[int | None, typer.Option(min=0, help="Number of prefill instances.")] = None,
    decode: Annotated[int | None, typer.Option(min=1, help="Number of decode instances.")] = None,
) -> None:
    """Start a whole mesh on this machine and print `ready URL` when it serves; Ctrl-C ends it."""
    from services.cli.up import UpFlags, run_up

    flags = UpFlags(config=config, port=port, model=model, dtype=dtype, prefill=prefill, decode=decode)
    raise typer.Exit(run_up(flags, _environ()))


@app.command(epilog=examples("gateway"))
def gateway(config: ConfigFile = None, model_folder: ModelFolder = None, parent_fd: ParentFd = None) -> None:
    """Run the gateway: the OpenAI-compatible API in front of the mesh."""
    from services.cli.roles import ProcessFlags, run_gateway_process

    run_gateway_process(ProcessFlags(config, model_folder, parent_fd), _environ())


@app.command(epilog=examples("prefill"))
def prefill(
    config: ConfigFile = None,
    instance: InstanceName = None,
    model_folder: ModelFolder = None,
    parent_fd: ParentFd = None,
) -> None:
    """Run one prefill instance."""
    from services.cli.roles import ProcessFlags, run_instance_process

    run_instance_process(ProcessFlags(config, model_folder, parent_fd), Role.PREFILL, instance, _environ())


@app.command(epilog=examples("decode"))
def decode(
    config: ConfigFile = None,
    instance: InstanceName = None,
    model_folder: ModelFolder = None,
    parent_fd: ParentFd = None,
) -> None:
    """Run one decode instance."""
    from services.cli.roles import ProcessFlags, run_instance_process

    run_instance_process(ProcessFlags(config, model_folder, parent_fd), Role.DECODE, instance, _environ())


@app.command(epilog=examples("links"))
def links(
    url: GatewayUrl = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show how fast KV moves between the instances of a running mesh, by each backend."""
    from rich.console import Console

    from services.cli.links import show_links

    show_links(_at(url, api_key), as_json=as_json, console=Console())


@app.command(epilog=examples("status"))
def status(
    url: GatewayUrl = DEFAULT_URL,
    api_key: ApiKey = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Anew every second, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show who is in a running mesh and what each holds; exit code 1 while it is not ready."""
    from services.cli.status import show_status, watch_status
    from services.cli.trace import wide_console

    if watch and as_json:
        raise typer.BadParameter("--watch is for people, and --json for programs: give one of them")
    if watch:
        watch_status(_at(url, api_key), wide_console())
    elif not show_status(_at(url, api_key), as_json=as_json, console=wide_console()):
        raise typer.Exit(ExitCode.FAILED)


@app.command(epilog=examples("drain"))
def drain(
    instance: Annotated[str, typer.Argument(metavar="ID", help="As `pdmesh status` shows it.")],
    url: GatewayUrl = DEFAULT_URL,
    wait: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Return when it holds nothing, or fail.")
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Let an instance finish what it has and be given nothing new, before it is stopped or replaced."""
    from rich.console import Console

    from services.cli.draining import drain as run_drain

    run_drain(_at(url, api_key), instance, wait, Console())


@app.command(epilog=examples("resume"))
def resume(
    instance: Annotated[str, typer.Argument(metavar="ID", help="One that drains.")],
    url: GatewayUrl = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Let an instance that drains be given requests again."""
    from rich.console import Console

    from services.cli.draining import resume as run_resume

    run_resume(_at(url, api_key), instance, Console())


@app.command(epilog=examples("chat"))
def chat(
    text: Annotated[str | None, typer.Argument(help="Say this and end. Without it: a conversation.")] = None,
    url: GatewayUrl = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Default: what the mesh serves.")] = None,
    system: Annotated[str | None, typer.Option(help="Said to the model before all else.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of each answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Talk to a running mesh."""
    from services.cli.chat import ChatSettings, run_chat, served_model
    from services.cli.trace import wide_console

    chosen = model or served_model(_at(url, api_key))
    settings = ChatSettings(url, chosen, system, max_tokens, temperature, api_key)
    run_chat(settings, text, lambda: input("> "), wide_console())


@app.command(epilog=examples("trace"))
def trace(
    request: Annotated[
        str | None,
        typer.Argument(
            metavar="REQUEST_ID", help="As in x-request-id, or the id of an answer. Without it: the newest."
        ),
    ] = None,
    url: GatewayUrl = DEFAULT_URL,
    api_key: ApiKey = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a timeline for ui.perfetto.dev; many with --limit.", dir_okay=False),
    ] = None,
) -> None:
    """Show where the time of a request went, and why it was placed as it was: predicted beside real times."""
    from services.cli.trace import show_trace, show_traces, wide_console, write_perfetto

    at = _at(url, api_key)
    if perfetto is not None:
        write_perfetto(at, request, limit, perfetto, wide_console())
    elif request is None:
        show_traces(at, limit, as_json=as_json, console=wide_console())
    else:
        show_trace(at, request, as_json=as_json, console=wide_console())


@app.command(epilog=examples("profile"))
def profile(
    out: Annotated[Path, typer.Option(help="A .json file for one instance; a folder, for ID.json of each.")],
    url: GatewayUrl = DEFAULT_URL,
    api_key: ApiKey = None,
    instance: Annotated[list[str] | None, typer.Option(help="Its id; give several times. Default: all.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw measured against fitted here, as a PNG.")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Runs of each step; the median counts.")] = 6,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller grid, of prompts up to 512 tokens.")] = False,
    longest: Annotated[int | None, typer.Option(min=64, help="Tokens of the longest prompt and context.")] = None,
) -> None:
    """Measure what the steps of running instances cost, while the mesh idles."""
    from rich.console import Console

    from services.cli.profile import ALL, ProfileFlags, run_profile

    flags = ProfileFlags(url, tuple(instance or (ALL,)), out, plot, repeats, quick, longest, api_key)
    raise typer.Exit(run_profile(flags, Console(stderr=True)))


@app.command(epilog=examples("simulate"))
def simulate(
    cluster: Annotated[Path, typer.Option(help="The cluster file; docs/simulator.md.", exists=True, dir_okay=False)],
    trace: Annotated[
        str, typer.Option(help="A trace's path, a public one's name, or synthetic[:SHAPE].")
    ] = "synthetic",
    policy: Annotated[str | None, typer.Option(help="NAME[,NAME...] of systems in the file, or of policies.")] = None,
    rate: Annotated[str | None, typer.Option(help="Requests per second: R[,R...].")] = None,
    all_at_once: Annotated[bool, typer.Option("--all-at-once", help="All come at 0 s (the default).")] = False,
    recorded: Annotated[bool, typer.Option("--recorded", help="At the trace's own times.")] = False,
    requests: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of synthetic lengths and of arrivals.")] = 0,
    cv: Annotated[float, typer.Option(help="Of the gaps at a rate: 1 Poisson, 0 even, above 1 in bursts.")] = 1.0,
    divide: Annotated[int, typer.Option(min=1, help="Divide every length by this.")] = 1,
    data: Annotated[Path | None, typer.Option(help="Folder of public traces; else PDMESH_DATA.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.", dir_okay=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw distributions, and P99 over the rate: a PNG.")] = None,
) -> None:
    """Predict how a cluster serves a trace under one or more policies; runs nothing."""
    from rich.console import Console

    from services.cli.simulate import SimulateFlags, run_simulate

    flags = SimulateFlags(
        cluster=cluster,
        trace=trace,
        policy=policy,
        rate=rate,
        all_at_once=all_at_once,
        recorded=recorded,
        requests=requests,
        seed=seed,
        cv=cv,
        divide=divide,
        data=data,
        json=json,
        plot=plot,
    )
    raise typer.Exit(run_simulate(flags, _environ(), Console(), Console(stderr=True)))


@app.command(epilog=examples("plan"))
def plan(
    cluster: Annotated[Path, typer.Argument(metavar="CLUSTER.YAML", help="docs/planning.md.", dir_okay=False)],
    objective: Annotated[str | None, typer.Option(help="throughput, goodput or price; else the file's.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second; else the file's.")] = None,
    top: Annotated[int, typer.Option(min=1, max=99, help="Plans to simulate and show.")] = 5,
    explain: Annotated[bool, typer.Option("--explain", help="Every limiting factor, refusal and omission.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The best, as mesh.yaml.", dir_okay=False)] = None,
    all_: Annotated[
        Path | None, typer.Option("--all", metavar="DIR", help="Write each that can be run.", file_okay=False)
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.", dir_okay=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Rate or price over the limits: a PNG.", dir_okay=False)] = None,
    no_simulate: Annotated[bool, typer.Option("--no-simulate", help="Closed forms only.")] = False,
    runnable: Annotated[bool, typer.Option("--runnable", help="Only what `pdmesh up` can run now.")] = False,
    requests: Annotated[int, typer.Option(min=2, help="At most, in one simulation.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder of public traces; else PDMESH_DATA.")] = None,
) -> None:
    """Find the best deployments of a model on your machines; runs nothing."""
    from rich.console import Console

    from services.cli.plan import PlanFlags, run_plan

    flags = PlanFlags(
        cluster=cluster,
        objective=objective,
        rate=rate,
        top=top,
        explain=explain,
        out=out,
        all=all_,
        json=json,
        plot=plot,
        no_simulate=no_simulate,
        runnable=runnable,
        requests=requests,
        seed=seed,
        data=data,
    )
    raise typer.Exit(run_plan(flags, _environ(), Console(), Console(stderr=True)))


@app.command(epilog=examples("compose"))
def compose(
    config: Annotated[Path, typer.Argument(metavar="MESH.YAML", help="What is to run where.", dir_okay=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("compose.yaml"),
    host: Annotated[str | None, typer.Option(help="Only this machine's part. Default: a file for each.")] = None,
    gateway_host: Annotated[
        str | None, typer.Option(help="The gateway's machine, by the name that the others reach it by.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="For everything; default: pdmesh:cpu, :cuda and :rocm.")] = None,
    image_cuda: Annotated[str | None, typer.Option(help="For instances on CUDA devices.")] = None,
    image_rocm: Annotated[str | None, typer.Option(help="For instances on ROCm devices.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Use the models in this folder, in place of a volume.", file_okay=False)
    ] = None,
) -> None:
    """Write a compose file for a mesh, one service for each instance; several machines get a file each."""
    from services.cli.compose import ComposeFlags, run_compose

    flags = ComposeFlags(config, out, host, gateway_host, image, image_cuda, image_rocm, cache)
    raise typer.Exit(run_compose(flags, _environ()))


@model_app.command("fetch", epilog=examples("model fetch"))
def model_fetch(
    name: Annotated[str | None, typer.Argument(help="Without it: the model of the configuration.")] = None,
    config: ConfigFile = None,
) -> None:
    """Prepare a model, so that the next start finds it; prints its folder."""
    from services.cli.roles import fetch_model

    print(fetch_model(name, config, _environ()))


@model_app.command("list", epilog=examples("model list"))
def model_list(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """Show which models are prepared on this machine."""
    from services.cli.model_list import list_models
    from services.cli.trace import wide_console

    list_models(_environ(), as_json=as_json, console=wide_console())


@config_app.command("show", epilog=examples("config show"))
def config_show(
    config: ConfigFile = None,
    every: Annotated[bool, typer.Option("--all", help="Defaults too.")] = False,
    key: Annotated[str | None, typer.Option(help="Only what this key means, may be, and is by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show the values of a configuration: what each is, who decided it, and what it means."""
    from common.errors import ConfigError
    from services.cli.config_show import explain_key, show_config
    from services.cli.trace import wide_console

    if key is None:
        show_config(config, _environ(), as_json=as_json, every=every, console=wide_console())
    elif not explain_key(key, wide_console()):
        raise ConfigError(f"no key {key!r}; `pdmesh config show --all` lists them")


@config_app.command("check", epilog=examples("config check"))
def config_check(config: ConfigFile = None) -> None:
    """Say whether the configuration, with the environment on top, can be used, and what is not on this machine."""
    from services.cli.config_check import check_config
    from services.cli.trace import wide_console

    check_config(config, _environ(), wide_console())


def _at(url: str, api_key: str | None) -> "Gateway":
    from services.cli.gateway_client import Gateway

    return Gateway(url, api_key)


def _environ() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251 - a composition root


def main() -> None:
    """The `pdmesh` command; exits with an ExitCode."""
    try:
        app(prog_name="pdmesh")
    except PdmeshError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
