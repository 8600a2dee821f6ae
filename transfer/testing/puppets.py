"""Peers that say what they are told: dead, silent or senseless ones among them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import xxhash

from common.kv.intervals import Interval
from common.kv.layout import KVDType
from transfer.backends.base import Backend, Link
from transfer.plan import region_of
from transfer.protocol.messages import (
    SPOKEN,
    Accepted,
    Alive,
    AllLanded,
    Capabilities,
    Open,
    Probe,
    SegmentWritten,
    ToSink,
    ToSource,
    ZonesFreed,
    sink_codec,
    source_codec,
)
from transfer.testing.mesh import (
    DEADLINE_S,
    NUM_TOKENS,
    Mesh,
    example_layout,
    example_limits,
)
from transfer.workshop import capabilities_of


class TakerPuppet:
    """A sink that says what it is told. It gives no sign of life of its own."""

    def __init__(self, link: Link, made: Mesh) -> None:
        self.link = link
        self._mesh = made
        self.zones = made.borrow(made.limits.landing_zones)

    def open(self, **changes: object) -> Open:
        """The right Open for `Mesh.offer()`, or one with some fields changed, of its capabilities too."""
        layout = self._mesh.taken.layout
        capabilities = capabilities_of(layout, self._mesh.limits)
        inner = {name: changes.pop(name) for name in Capabilities.__struct_fields__ if name in changes}
        right = Open(
            capabilities=msgspec.structs.replace(capabilities, **inner),
            ticket=self._mesh.ticket(),
            region=region_of(layout),
            num_tokens=NUM_TOKENS,
            zones=len(self.zones),
            descriptor=self.link.register(self.zones),
            checksum=True,
            patience_s=DEADLINE_S,
        )
        return msgspec.structs.replace(right, **changes)

    def probe(self, segments: int) -> Probe:
        """A request for a self-test of so many segments."""
        return Probe(len(self.zones), self._mesh.limits.segment_bytes, segments, self.link.register(self.zones))

    async def say(self, message: ToSource) -> None:
        """Send one message."""
        await self.link.send(source_codec().encode(message))

    async def hear(self) -> ToSink:
        """The next message that is not Alive."""
        while isinstance(message := sink_codec().decode(await self.link.receive()), Alive):
            pass
        return message


class SourcePuppet:
    """A source that says what it is told, to the one taker that comes."""

    def __init__(self) -> None:
        self._links: asyncio.Queue[Link] = asyncio.Queue()
        self.link: Link

    async def meet(self) -> Open:
        """Wait for the taker and hear its Open."""
        self.link = await self._links.get()
        message = source_codec().decode(await self.link.receive())
        assert isinstance(message, Open)
        self.link.attach(message.descriptor)
        return message

    async def say(self, message: ToSink) -> None:
        """Send one message."""
        await self.link.send(sink_codec().encode(message))

    async def write(self, segment: SegmentWritten) -> None:
        """Write `length` bytes of 7 and announce them as told; 0 as checksum means the right one."""
        data = bytes([7]) * segment.length
        window = self.link.window(segment.zone, segment.length)
        if window is not None:
            window[:] = data
        await self.link.write(segment.zone, memoryview(data) if window is None else window)
        right = xxhash.xxh3_64_intdigest(data)
        await self.say(msgspec.structs.replace(segment, checksum=right) if segment.checksum == 0 else segment)

    @classmethod
    @asynccontextmanager
    async def listening(cls, backend: Backend) -> AsyncIterator[tuple["SourcePuppet", tuple[str, ...]]]:
        """A puppet and its endpoints."""
        puppet = cls()
        listener = await backend.listen(puppet._links.put_nowait)
        try:
            yield puppet, (listener.endpoint,)
        finally:
            await listener.close()
            if hasattr(puppet, "link"):
                await puppet.link.close()


def bent(frame: bytes, path: Sequence[str], value: object) -> bytes:
    """The frame of a message with a value in the named place that no constructor would take."""
    version, body = msgspec.msgpack.decode(frame)
    place = body
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return msgspec.msgpack.encode((version, body))


def segment(zone: int = 0, layer: int = 2, start: int = 0, stop: int = 8, **changes: object) -> SegmentWritten:
    """One layer of some tokens of `example_layout()`."""
    right = SegmentWritten(zone, Interval(layer, layer + 1), Interval(start, stop), (stop - start) * 128, 0)
    return msgspec.structs.replace(right, **changes)


def accepted(**changes: object) -> Accepted:
    """What a source of `example_layout()` says, or something else."""
    capabilities = capabilities_of(example_layout(), example_limits())
    inner = {name: changes.pop(name) for name in Capabilities.__struct_fields__ if name in changes}
    right = Accepted(msgspec.structs.replace(capabilities, **inner), SPOKEN.newest, 1024, KVDType.FLOAT32)
    return msgspec.structs.replace(right, **changes)


NONSENSE_FROM_SOURCE: dict[str, tuple[ToSink, ...]] = {
    "before accepted": (segment(),),
    "accepted twice": (accepted(), accepted()),
    "accepted otherwise": (accepted(wire_dtype=KVDType.FLOAT16),),
    "twice": (accepted(), segment(), segment(zone=1)),
    "overlapping": (accepted(), segment(), segment(zone=1, start=7, stop=9)),
    "layer outside": (accepted(), segment(layer=6)),
    "tokens outside": (accepted(), segment(start=24, stop=32)),
    "empty": (accepted(), segment(stop=1, tokens=Interval(3, 3))),
    "length": (accepted(), segment(length=512)),
    "no checksum": (accepted(), segment(checksum=None)),
    "checksum": (accepted(), segment(checksum=1)),
}
NONSENSE_FROM_TAKER: dict[str, tuple[ToSource, ...]] = {
    "all landed at once": (AllLanded(),),
    "frees what is free": (ZonesFreed((2,)),),
    "frees what is not there": (ZonesFreed((3,)),),
}
