"""`pdmesh drain` and `pdmesh resume`: give an instance nothing new while it finishes what it has, and its return."""

import time
from typing import Final
from urllib.parse import quote

from rich.console import Console

from common.errors import PdmeshError
from common.messages.operator import DrainAnswer, InstanceInfo, InstanceList
from services.cli.gateway_client import GatewayAt, ask

_POLL_S: Final = 0.2


class NotDrained(PdmeshError):
    """The instance still holds requests after the time that was given."""


def drain(at: GatewayAt, instance: str, wait_s: float | None, console: Console) -> None:
    """Give `instance` nothing new; with `wait_s` return when it holds nothing.

    Raises NoMesh, GatewayRefused and NotDrained.
    """
    ask(at, f"/instances/{quote(instance, safe='')}/drain", DrainAnswer, method="POST")
    console.print(f"{instance} drains: it finishes what it has; `pdmesh resume {instance}` takes that back")
    if wait_s is None:
        return
    until = time.monotonic() + wait_s  # noqa: TID251 - a person waits
    while (left := _held(at, instance)) > 0:
        if time.monotonic() > until:  # noqa: TID251
            raise NotDrained(f"{instance} still holds {left} requests after {wait_s:g} s; wait longer with --wait")
        time.sleep(_POLL_S)
    console.print(f"{instance} holds nothing")


def resume(at: GatewayAt, instance: str, console: Console) -> None:
    """Let `instance` be given requests again. Raises NoMesh, GatewayRefused."""
    ask(at, f"/instances/{quote(instance, safe='')}/resume", DrainAnswer, method="POST")
    console.print(f"{instance} serves")


def _held(at: GatewayAt, instance: str) -> int:
    """Requests that it holds; one that has left holds none. What it has not heard of the drain counts as one."""
    _, found = ask(at, "/instances", InstanceList)
    return sum(_requests(info) for info in found.instances if info.member.instance == instance)


def _requests(info: InstanceInfo) -> int:
    return max(info.load.running + info.load.waiting, int(not info.load.draining))
