"""A channel always has an answer for who waits for the next message."""

from collections.abc import Sequence

import pytest

from common.tasks import TaskScope
from transfer.backends.base import Buffer, Link
from transfer.channel import Channel
from transfer.errors import Corrupt
from transfer.protocol.messages import Alive, ToSink, ToSource, sink_codec, source_codec


class Faulty(Link):
    """A link with a fault in it that a peer has found."""

    @property
    def bytes_heard(self) -> int:
        return 0

    def register(self, zones: Sequence[Buffer]) -> bytes:
        return b""

    def attach(self, descriptor: bytes) -> None: ...

    async def write(self, zone: int, data: memoryview) -> None: ...

    async def send(self, message: bytes) -> None: ...

    async def receive(self) -> bytes:
        raise OverflowError("nobody has thought of this")

    async def close(self) -> None: ...


async def test_a_fault_of_ours_ends_the_peers_hand_off(caplog: pytest.LogCaptureFixture) -> None:
    """At once, and not by silence; the log has all of it."""
    tasks = TaskScope("test")
    channel: Channel[ToSource, ToSink] = Channel(Faulty(), source_codec(), sink_codec(), Alive(), tasks, 60.0)
    with pytest.raises(Corrupt, match="nobody has thought of this"):
        await channel.next()
    assert "OverflowError" in caplog.text
    assert "task" not in caplog.text
    await channel.close()
    assert len(tasks) == 0
