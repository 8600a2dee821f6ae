"""A source serves a few self-tests at a time, and all in the end."""

import asyncio

from common.clock import SystemClock
from transfer.backends.base import Buffer
from transfer.backends.inproc import InprocBackend
from transfer.memory import PagedMemory
from transfer.probe import TURNS
from transfer.protocol.messages import ProbeAccepted, ProbeWritten, ToSink
from transfer.sink import KVSink
from transfer.testing import D_GENERATION, Mesh, TakerPuppet, example_layout, example_limits, mesh

LIMITS = example_limits(progress_timeout_s=10.0)
CROWD = 3 * TURNS


class Counting(InprocBackend):
    """Keeps what it made and was given back."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Buffer] = []
        self.freed: list[Buffer] = []

    def allocate(self, num_bytes: int) -> Buffer:
        self.made.append(super().allocate(num_bytes))
        return self.made[-1]

    def free(self, buffer: Buffer) -> None:
        self.freed.append(buffer)


async def measurer(made: Mesh) -> TakerPuppet:
    """Has asked for a self-test, of more segments than it has zones."""
    puppet = TakerPuppet(await made.backend.connect(made.endpoints[0]), made)
    await puppet.say(puppet.probe(len(puppet.zones) + 1))
    assert isinstance(await puppet.hear(), ProbeAccepted), "at once, whoever has the turn"
    return puppet


async def heard(puppet: TakerPuppet) -> ToSink | None:
    """Within a moment."""
    try:
        async with asyncio.timeout(0.1):
            return await puppet.hear()
    except TimeoutError:
        return None


async def test_others_wait_for_their_turn() -> None:
    async with mesh(InprocBackend(), limits=LIMITS) as made:
        puppets = [await measurer(made) for _ in range(TURNS + 1)]
        assert [isinstance(await heard(puppet), ProbeWritten) for puppet in puppets] == [True] * TURNS + [False]
        await puppets[0].link.close()
        assert isinstance(await heard(puppets[-1]), ProbeWritten)
        for puppet in puppets:
            await puppet.link.close()


async def test_who_leaves_the_queue_takes_no_turn() -> None:
    async with mesh(InprocBackend(), limits=LIMITS) as made:
        puppets = [await measurer(made) for _ in range(TURNS + 2)]
        await puppets[-2].link.close()
        await puppets[0].link.close()
        assert isinstance(await heard(puppets[-1]), ProbeWritten)
        for puppet in puppets:
            await puppet.link.close()


async def test_many_that_join_at_once_all_measure() -> None:
    async with mesh(InprocBackend(), limits=LIMITS) as made:
        clock = SystemClock()
        sinks = [
            KVSink(PagedMemory.zeros(example_layout(), 8), D_GENERATION, LIMITS, clock, [made.backend])
            for _ in range(CROWD)
        ]
        met = await asyncio.gather(*(sink.meet(made.endpoints) for sink in sinks))
        assert [len(found.figures) for found in met] == [1] * CROWD
        assert made.source.connections_broken == 0
        for sink in sinks:
            await sink.close()


async def test_all_send_from_one_buffer_that_is_given_back() -> None:
    backend = Counting()
    async with mesh(backend, limits=LIMITS) as made:
        await asyncio.gather(*(made.sink.meet(made.endpoints) for _ in range(3)))
        of_sink = set(backend.made) & {*made.sink._workshop.staging["inproc"]._free}
        (zeros,) = set(backend.made) - of_sink
        assert bytes(zeros.view) == bytes(LIMITS.segment_bytes)
        assert zeros not in backend.freed
    assert set(backend.freed) == set(backend.made)
