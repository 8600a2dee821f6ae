"""The command line. Each command imports what it needs when it runs: the gateway must never load torch."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.errors import PdmeshError
from common.messages.control import Role
from services.cli.outcome import ExitCode, report

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="mesh.yaml; without it every key has its default.", dir_okay=False)
]
InstanceName = Annotated[str | None, typer.Option("--instance", help="Its id in mesh.yaml, where there are several.")]
ModelFolder = Annotated[Path | None, typer.Option("--model-folder", hidden=True, help="The prepared model.")]
ParentFd = Annotated[int | None, typer.Option("--parent-fd", hidden=True, help="End when this pipe closes.")]

app = typer.Typer(
    name="pdmesh",
    help="Serve a large language model with prefill and decode in different processes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(name="model", help="Models on this machine.", no_args_is_help=True)
config_app = typer.Typer(name="config", help="The configuration.", no_args_is_help=True)
bench_app = typer.Typer(name="bench", help="Measurements.", no_args_is_help=True)
app.add_typer(model_app)
app.add_typer(config_app)
app.add_typer(bench_app)


@app.command()
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


@app.command()
def gateway(config: ConfigFile = None, model_folder: ModelFolder = None, parent_fd: ParentFd = None) -> None:
    """Run the gateway: the OpenAI-compatible API in front of the mesh."""
    from services.cli.roles import ProcessFlags, run_gateway_process

    run_gateway_process(ProcessFlags(config, model_folder, parent_fd), _environ())


@app.command()
def prefill(
    config: ConfigFile = None,
    instance: InstanceName = None,
    model_folder: ModelFolder = None,
    parent_fd: ParentFd = None,
) -> None:
    """Run one prefill instance."""
    from services.cli.roles import ProcessFlags, run_instance_process

    run_instance_process(ProcessFlags(config, model_folder, parent_fd), Role.PREFILL, instance, _environ())


@app.command()
def decode(
    config: ConfigFile = None,
    instance: InstanceName = None,
    model_folder: ModelFolder = None,
    parent_fd: ParentFd = None,
) -> None:
    """Run one decode instance."""
    from services.cli.roles import ProcessFlags, run_instance_process

    run_instance_process(ProcessFlags(config, model_folder, parent_fd), Role.DECODE, instance, _environ())


@app.command()
def links(
    url: Annotated[str, typer.Option(help="Where the gateway serves.")] = "http://127.0.0.1:8000",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show how fast KV moves between the instances of a running mesh, by each backend."""
    from rich.console import Console

    from services.cli.links import show_links

    show_links(url, as_json=as_json, console=Console())


@model_app.command("fetch")
def model_fetch(
    name: Annotated[str | None, typer.Argument(help="Without it: the model of the configuration.")] = None,
    config: ConfigFile = None,
) -> None:
    """Prepare a model, so that the next start finds it; prints its folder."""
    from services.cli.roles import fetch_model

    print(fetch_model(name, config, _environ()))


@config_app.command("check")
def config_check(config: ConfigFile = None) -> None:
    """Say whether the configuration, with the environment on top, can be used."""
    from common.config.load import load_mesh

    mesh = load_mesh(config, _environ(), {})
    instances = ", ".join(f"{instance.id} ({instance.role})" for instance in mesh.instances)
    print(f"ok: model {mesh.model}, dtype {mesh.dtype}, split {mesh.split}, instances {instances}")


@bench_app.command("transfer")
def bench_transfer(
    json: Annotated[Path, typer.Option("--json", help="Where to write the report.", dir_okay=False)],
    peers: Annotated[bool, typer.Option("--peers", help="Beside other libraries, those that are installed.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, to see that it runs; not for figures.")] = False,
    segment_bytes: Annotated[int, typer.Option(min=64 << 10, help="Largest piece on the wire.")] = 8 << 20,
) -> None:
    """Measure how fast KV moves by every backend, beside memcpy and one raw TCP connection."""
    from services.cli.bench import TransferFlags, run_transfer

    raise typer.Exit(run_transfer(TransferFlags(json, peers, quick, segment_bytes)))


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
