"""`pdmesh status`: who is in a running mesh, and what each holds."""

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.messages.operator import InstanceInfo, InstanceList
from services.cli.gateway_client import GatewayAt, ask
from services.gateway.routes.health_types import Health

REFRESH_S: Final = 1.0
_NOTHING: Final = "–"


class Standing(msgspec.Struct, frozen=True):
    """What a mesh says of itself at one moment, and what `--json` writes."""

    ready: Health
    instances: tuple[InstanceInfo, ...]


class Rate(msgspec.Struct, frozen=True):
    """What an instance does in a second."""

    steps: float
    tokens: float
    """Computed, of prompts and of answers."""


class Rates:
    """What each instance does, from one look to the next."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._seen: dict[str, tuple[float, InstanceInfo]] = {}

    def look(self, instances: Sequence[InstanceInfo]) -> dict[str, Rate]:
        """Since the look before; nothing for an instance, or a life of one, that is seen for the first time."""
        at_s, rates = self._now(), dict[str, Rate]()
        for info in instances:
            name = info.member.instance
            before_s, before = self._seen.get(name, (at_s, info))
            if before.member.generation == info.member.generation and at_s > before_s:
                seconds = at_s - before_s
                steps, tokens = info.load.steps - before.load.steps, info.load.tokens - before.load.tokens
                rates[name] = Rate(steps / seconds, tokens / seconds)
            self._seen[name] = (at_s, info)
        return rates


def show_status(at: GatewayAt, *, as_json: bool, console: Console) -> bool:
    """Print it once; whether the mesh is ready. Raises NoMesh."""
    standing = fetch_standing(at)
    if as_json:
        console.print_json(msgspec.json.encode(standing).decode())
    else:
        console.print(view(standing, {}))
    return standing.ready.status == "ready"


def watch_status(at: GatewayAt, console: Console, looks: int | None = None) -> None:
    """Print it anew every second, until interrupted or `looks` times. Raises NoMesh where the gateway goes away."""
    rates = Rates(time.monotonic)  # noqa: TID251 - a person looks at it
    with Live(console=console, auto_refresh=False) as live:
        count = 0
        while looks is None or count < looks:
            standing = fetch_standing(at)
            live.update(view(standing, rates.look(standing.instances)), refresh=True)
            count += 1
            if count != looks:
                time.sleep(REFRESH_S)


def fetch_standing(at: GatewayAt) -> Standing:
    """What the gateway says. Raises NoMesh."""
    _, found = ask(at, "/instances", InstanceList)
    _, ready = ask(at, "/ready", Health, also=503)
    return Standing(ready, found.instances)


def view(standing: Standing, rates: dict[str, Rate]) -> RenderableType:
    """A line and a table."""
    ready = standing.ready
    line = Text("ready" if ready.status == "ready" else f"not ready: {ready.reason}")
    return Group(line, status_table(standing.instances, rates))


def status_table(instances: Sequence[InstanceInfo], rates: dict[str, Rate]) -> Table:
    """One row for each instance, in the order of joining."""
    table = Table()
    for heading in ("instance", "role", "device", "layout", "generation", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "running",
        "waiting",
        "prompt tokens",
        "context",
        "KV used",
        "kept",
        "steps/s",
        "tokens/s",
        "step time",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for info in instances:
        table.add_row(*map(Text, _cells(info, rates.get(info.member.instance))))
    return table


def _cells(info: InstanceInfo, rate: Rate | None) -> tuple[str, ...]:
    member, load = info.member, info.load
    device, layout = member.device, member.layout
    name = " ".join(filter(None, (device.name or "device", f"x{device.slowdown:g} slower" * (device.slowdown > 1))))
    total = load.blocks_total
    return (
        member.instance,
        member.role.value,
        name,
        f"{layout.dtype.value} {layout.order.value} {layout.block_size}",
        # Its end tells one life from another.
        "…" + f"{member.generation:x}"[-6:],
        "draining" if load.draining else "serving",
        f"{load.running}/{member.max_batch}",
        str(load.waiting),
        str(load.queued_tokens),
        str(load.context_tokens),
        f"{load.blocks_used / total:.0%}" if total else _NOTHING,
        f"{load.blocks_kept / total:.0%}" if total else _NOTHING,
        _NOTHING if rate is None else f"{rate.steps:.1f}",
        _NOTHING if rate is None else f"{rate.tokens:.0f}",
        f"x{load.cost_factor:.2f}" if member.costs is not None else _NOTHING,
    )
