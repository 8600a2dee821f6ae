import asyncio
import logging

import pytest

from common.clock import SystemClock
from common.ids import Generation
from transfer.backends.base import Backend, Link
from transfer.backends.inproc import InprocBackend
from transfer.backends.tcp import TcpBackend
from transfer.errors import PeerLost, Stopped, Unreachable
from transfer.limits import TransferHoldings
from transfer.memory import PagedMemory
from transfer.paths import Path, fastest_first, paths_to
from transfer.probe import LinkFigures
from transfer.sink import KVSink
from transfer.source import KVSource
from transfer.testing import (
    D_GENERATION,
    DEADLINE_S,
    NUM_TOKENS,
    P_GENERATION,
    SourcePuppet,
    eventually,
    example_layout,
    example_limits,
    make_ready,
    peer_ticket,
    random_memory,
)


class Blocked(InprocBackend):
    """A second scheme, whose links cannot be made."""

    scheme = "blocked"

    async def connect(self, endpoint: str) -> Link:
        raise PeerLost(f"{endpoint} is walled up")


class Elsewhere(InprocBackend):
    """A third, that knows from the address that it does not lead there."""

    scheme = "elsewhere"

    def reaches(self, endpoint: str) -> bool:
        return not endpoint.startswith("elsewhere://")


PATHS = (Path("a", "a://1"), Path("b", "b://1"), Path("c", "c://1"))


def test_measured_paths_come_first_by_speed() -> None:
    figures = {"b://1": LinkFigures("b", 5e9, 1e-4), "c://1": LinkFigures("c", 9e9, 1e-3)}
    assert [path.scheme for path in fastest_first(PATHS, figures)] == ["c", "b", "a"]
    assert fastest_first(PATHS, {}) == PATHS


def test_paths_need_a_backend_at_both_ends() -> None:
    backends: list[Backend] = [Blocked(), InprocBackend(), Elsewhere()]
    endpoints = ("tcp://h:1", "inproc://p0", "elsewhere://x", "blocked://x")
    assert [path.endpoint for path in paths_to(endpoints, backends)] == ["blocked://x", "inproc://p0"]


async def test_an_unreachable_path_is_left_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    """Loudly."""
    good = InprocBackend()
    source = KVSource(random_memory(example_layout()), P_GENERATION, example_limits(), SystemClock(), [good])
    taken = PagedMemory.zeros(example_layout(), 8)
    sink = KVSink(taken, D_GENERATION, example_limits(), SystemClock(), [Blocked(), good])
    endpoints = ("blocked://x", *await source.start())
    offer = source.offer(peer_ticket(endpoints), range(8), NUM_TOKENS, DEADLINE_S)
    make_ready(offer, 0, 4)
    with caplog.at_level(logging.WARNING):
        landed = await sink.take(peer_ticket(endpoints), range(8), NUM_TOKENS, DEADLINE_S)
    assert (landed.scheme, sink.fallbacks) == ("inproc", 1)
    assert "walled up" in caplog.text
    assert "falling back to inproc://p0" in caplog.text
    assert sink.tallies()["inproc"].payload_bytes == landed.payload_bytes
    with pytest.raises(Unreachable, match="walled up"):
        await sink.take(peer_ticket(("blocked://x",)), range(8), NUM_TOKENS, DEADLINE_S)
    with pytest.raises(PeerLost, match="tcp://h:1"):
        await sink.take(peer_ticket(("tcp://h:1",)), range(8), NUM_TOKENS, DEADLINE_S)
    await sink.close()
    await source.close()


async def test_a_self_test_decides_the_order() -> None:
    """What cannot be measured is counted and goes last; a source that is not there is an error."""
    good = InprocBackend()
    source = KVSource(random_memory(example_layout()), P_GENERATION, example_limits(), SystemClock(), [good])
    sink = KVSink(
        PagedMemory.zeros(example_layout(), 8), Generation(1), example_limits(), SystemClock(), [Blocked(), good]
    )
    endpoints = ("blocked://x", *await source.start())
    met = await sink.meet(endpoints)
    (figures,) = met.figures
    assert "walled up" in met.failed[0]
    assert figures.scheme == "inproc"
    assert figures.bytes_per_s > 0
    assert figures.round_trip_s > 0
    assert sink.fallbacks == 1
    with pytest.raises(PeerLost):
        await sink.meet(("inproc://nobody",))
    await eventually(lambda: source.holdings() == sink.holdings() == TransferHoldings())
    await asyncio.gather(sink.close(), source.close())


async def test_closing_ends_a_self_test() -> None:
    """Of a source that is alive and says nothing."""
    backend = InprocBackend()
    sink = KVSink(PagedMemory.zeros(example_layout(), 8), D_GENERATION, example_limits(), SystemClock(), [backend])
    async with SourcePuppet.listening(backend) as (_, endpoints):
        meeting = asyncio.get_running_loop().create_task(sink.meet(endpoints))
        await eventually(lambda: sink.holdings().connections == 1)
        await sink.close()
        with pytest.raises(Stopped):
            await meeting
    assert sink.holdings() == TransferHoldings()


@pytest.mark.parametrize(
    "malformed", ["tcp://no-port", "tcp://127.0.0.1:99999999999", "tcp://:1", f"tcp://{'x' * 100}.example:1"]
)
async def test_a_malformed_endpoint_is_left_for_the_next(malformed: str) -> None:
    """By a take and by a self-test; alone it is one that cannot be reached."""
    layout, limits, clock = example_layout(), example_limits(), SystemClock()
    source = KVSource(random_memory(layout), P_GENERATION, limits, clock, [TcpBackend()])
    sink = KVSink(PagedMemory.zeros(layout, 8), D_GENERATION, limits, clock, [TcpBackend()])
    endpoints = (malformed, *await source.start())
    met = await sink.meet(endpoints)
    assert (len(met.figures), len(met.failed)) == (1, 1)
    sink._figures.clear()  # or the one that was measured would come first
    offer = source.offer(peer_ticket(endpoints), range(8), NUM_TOKENS, DEADLINE_S)
    make_ready(offer, 0, 4)
    await sink.take(peer_ticket(endpoints), range(8), NUM_TOKENS, DEADLINE_S)
    assert sink.fallbacks == 2
    with pytest.raises(Unreachable):
        await sink.take(peer_ticket((malformed,)), range(8), NUM_TOKENS, DEADLINE_S)
    await sink.close()
    await source.close()
