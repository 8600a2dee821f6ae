"""Both processes with all their memory, ready to move KV."""

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

from common.clock import Clock
from services.bench.repeats import OnStep
from services.bench.transfer.backends import ONE_PROCESS, usable_backends
from services.bench.transfer.caches import touched_memory
from services.bench.transfer.cases import SOURCE, LayoutCase, tokens_of
from services.bench.transfer.desk import Giver, GivingDesk
from services.bench.transfer.giver_process import GiverProcess
from services.bench.transfer.limits import bench_limits
from services.bench.transfer.messages import GiverPlan
from services.bench.transfer.peers.base import Peer
from services.bench.transfer.peers.registry import YARDSTICKS, Present, every_peer, present
from services.bench.transfer.raw import RawMover
from services.bench.transfer.sinks import Sinks
from services.bench.transfer.taker import Taker
from transfer.backends.base import Backend
from transfer.backends.registry import installed_backends
from transfer.memory import PagedMemory


@dataclass(frozen=True)
class Heard:
    """Who is told while it runs."""

    on_step: OnStep
    on_note: Callable[[str], None]
    """What is left out, and why."""


@dataclass(frozen=True)
class Stage:
    """What measurements are made with. Belongs to `open_stage`."""

    backends: Mapping[str, Backend]
    remote: Mapping[str, str]
    """Endpoints of the giver process, by scheme."""
    given: PagedMemory
    """A cache like the giver process's, in this one."""
    sinks: Sinks
    taker: Taker
    raw: RawMover
    peers: Mapping[str, Peer]
    versions: Mapping[str, str]
    """Of the raw peers that work here."""


@asynccontextmanager
async def open_stage(
    largest_bytes: int, segment_bytes: int, clock: Clock, heard: Heard, *, with_peers: bool
) -> AsyncIterator[Stage]:
    """Start the giver process, fill every cache, meet the raw peers. Raises BenchError or OSError."""
    heard.on_step("filling caches")
    usable = usable_backends(installed_backends())
    for scheme, reason in usable.skipped.items():
        heard.on_note(f"backend {scheme} is left out: {reason}")
    num_tokens = max(tokens_of(layout, largest_bytes) for layout in LayoutCase)
    given = touched_memory(SOURCE, num_tokens)
    far = tuple(scheme for scheme in usable.backends if scheme != ONE_PROCESS)
    near = {scheme: backend for scheme, backend in usable.backends.items() if scheme == ONE_PROCESS}
    async with AsyncExitStack() as stack:
        # The desk's CPU time is this process's, which the taker counts.
        desk = GivingDesk(given, near, bench_limits(segment_bytes), clock, lambda: 0.0)
        stack.push_async_callback(desk.close)
        await desk.start()
        sinks = Sinks(usable.backends, largest_bytes, segment_bytes, clock)
        stack.push_async_callback(sinks.close)
        remote = await GiverProcess.start(GiverPlan(far, segment_bytes, num_tokens, largest_bytes))
        stack.push_async_callback(remote.close)
        peers = every_peer(clock)
        raw = stack.enter_context(closing(RawMover(remote, peers, largest_bytes, clock, time.process_time)))
        found = _prepare_peers(peers, heard, with_peers=with_peers)
        givers: dict[str, Giver] = {**dict.fromkeys(far, remote), **dict.fromkeys(near, desk)}
        yield Stage(
            backends=usable.backends,
            remote=remote.endpoints,
            given=given,
            sinks=sinks,
            taker=Taker(sinks, givers, clock, time.process_time),
            raw=raw,
            peers=peers,
            versions={name: found.versions[name] for name in await _meet(raw, found, heard)},
        )


def _prepare_peers(peers: Mapping[str, Peer], heard: Heard, *, with_peers: bool) -> Present:
    found = present([peer for peer in peers.values() if with_peers or peer.name in YARDSTICKS])
    for name, reason in found.skipped.items():
        heard.on_note(f"peer {name} is left out: {reason}")
    for name in found.versions:
        os.environ.update(peers[name].environ)  # noqa: TID251 - for their libraries, which take it from nowhere else
    return found


async def _meet(raw: RawMover, found: Present, heard: Heard) -> list[str]:
    """Those that work. The yardsticks must; whatever the library of another raises leaves it out."""
    met: list[str] = []
    for name in found.versions:
        try:
            await raw.meet(name)
            met.append(name)
        except Exception as error:
            if name in YARDSTICKS:
                raise
            heard.on_note(f"peer {name} is left out: {type(error).__name__}: {error}")
    return met
