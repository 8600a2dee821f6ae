"""`pdmesh keys`: the keys by which instances and the gateway know each other."""

import os
from pathlib import Path
from typing import Annotated

import typer

from services.cli.examples import examples

keys_app = typer.Typer(name="keys", help="Keys, by which others prove who they are.", no_args_is_help=True)

_ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="mesh.yaml, whose instances need keys.", dir_okay=False)
]
_Folder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The folder; else gateway.control_keys, else keys.", file_okay=False),
]


@keys_app.command("init", epilog=examples("keys init"))
def init(
    config: _ConfigFile = None,
    out: _Folder = None,
    instance: Annotated[
        list[str] | None,
        typer.Option("--instance", metavar="ID", help="Make this one's key anew; `gateway` is the gateway's own."),
    ] = None,
) -> None:
    """Make keys for the control port: the gateway's, and one for each instance that has none.

    Each process needs its own folder in DIR and nothing else of it: after `pdmesh keys init --out keys`, keys/d0 goes
    to the machine of d0. A key that is made anew (--instance d0) ends the old one within a second.
    """
    from services.cli.control_keys import init_keys

    init_keys(config, out, tuple(instance or ()), _environ())


@keys_app.command("revoke", epilog=examples("keys revoke"))
def revoke(
    instance: Annotated[str, typer.Argument(help="The instance that may not join any more.")],
    config: _ConfigFile = None,
    out: _Folder = None,
) -> None:
    """Take an instance's key away, where the gateway runs: it is dropped within a second, and refused from then on."""
    from services.cli.control_keys import revoke_key

    revoke_key(config, out, instance, _environ())


@keys_app.command("api", epilog=examples("keys api"))
def api(
    name: Annotated[str, typer.Argument(help="Whose key it is, for logs and for taking it back.")],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="The file of keys; else gateway.api_keys, else api-keys.", dir_okay=False
        ),
    ] = None,
    config: _ConfigFile = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the key of this name back.")] = False,
) -> None:
    """Make an API key, print it once, and add its hash to the file that gateway.api_keys names.

    Clients send it as OpenAI's do (api_key=KEY); `pdmesh status` and the others take it from PDMESH_API_KEY. A gateway
    that runs sees a new or a revoked key within a second.
    """
    from services.cli.client_keys import add_client_key, keys_file, revoke_client_key

    where = keys_file(file, config, _environ())
    if revoke:
        revoke_client_key(where, name)
    else:
        print(add_client_key(where, name))


def _environ() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251 - a composition root
