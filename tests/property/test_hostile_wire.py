"""A hand-off over a wire that loses, doubles, swaps and damages what it carries: exact bytes, or a typed error."""

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MalformedMessage
from common.kv.ownership import Acknowledged
from transfer.backends.base import Backend, BackendTraits, Buffer, Link, Listener
from transfer.backends.inproc import InprocBackend
from transfer.errors import TransferError
from transfer.protocol.messages import sink_codec, source_codec
from transfer.testing import example_limits, mesh

LIMITS = example_limits(progress_timeout_s=0.15)


class Mischief:
    """What happens to the n-th thing that goes over the wire, in either direction."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self._held: bytes | None = None
        self.done: list[str] = []

    def of_message(self, message: bytes) -> list[bytes]:
        """The messages to send instead."""
        if self._random.random() >= self._rate:
            return [message]
        kind = self._random.choice(["lose", "double", "swap", "flip", "cut", "junk", "huge"])
        self.done.append(kind)
        match kind:
            case "lose":
                return []
            case "double":
                return [message, message]
            case "swap":
                held, self._held = self._held, message
                return [] if held is None else [message, held]
            case "flip":
                return [self._flipped(message)]
            case "cut":
                return [message[: self._random.randrange(len(message) + 1)]]
            case "junk":
                return [message, self._random.randbytes(self._random.randrange(60))]
            case _:
                return [message, b"\xdf\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff" * 3]

    def of_segment(self, data: memoryview) -> memoryview:
        """The bytes to write instead."""
        if self._random.random() >= self._rate:
            return data
        self.done.append("damage")
        return memoryview(self._flipped(bytes(data)))

    def _flipped(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        if damaged:
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)


class HostileLink(Link):
    """A link whose outgoing side is in the hands of `mischief`."""

    def __init__(self, inner: Link, mischief: Mischief) -> None:
        self._inner = inner
        self._mischief = mischief

    @property
    def bytes_heard(self) -> int:
        return self._inner.bytes_heard

    def register(self, zones: Sequence[Buffer]) -> bytes:
        return self._inner.register(zones)

    def attach(self, descriptor: bytes) -> None:
        self._inner.attach(descriptor)

    async def write(self, zone: int, data: memoryview) -> None:
        await self._inner.write(zone, self._mischief.of_segment(data))

    async def send(self, message: bytes) -> None:
        for instead in self._mischief.of_message(message):
            await self._inner.send(instead)

    async def receive(self) -> bytes:
        return await self._inner.receive()

    async def close(self) -> None:
        await self._inner.close()


class HostileBackend(Backend):
    """inproc through HostileLinks, at both ends."""

    scheme = "inproc"

    def __init__(self, mischief: Mischief) -> None:
        self._inner = InprocBackend()
        self._mischief = mischief
        self.is_hostile = True

    @property
    def traits(self) -> BackendTraits:
        return self._inner.traits

    async def listen(self, accept: Callable[[Link], None]) -> Listener:
        return await self._inner.listen(lambda link: accept(self._wrapped(link)))

    async def connect(self, endpoint: str) -> Link:
        return self._wrapped(await self._inner.connect(endpoint))

    def _wrapped(self, link: Link) -> Link:
        return HostileLink(link, self._mischief) if self.is_hostile else link


@pytest.mark.parametrize("seed", range(60))
async def test_exact_bytes_or_a_typed_error(seed: int) -> None:
    mischief = Mischief(seed, rate=0.02 if seed % 2 else 0.15)
    backend = HostileBackend(mischief)
    async with mesh(backend, limits=LIMITS) as made:
        offer = made.offer(deadline_s=3.0)
        try:
            landed = await made.sink.take(made.ticket(), range(8), 30, 3.0)
        except TransferError:
            assert mischief.done, "an error on an honest wire"
        else:
            made.assert_arrived()
            assert landed.payload_bytes == 4 * 30 * 128
        if mischief.done:
            offer.withdraw("the last word may have been lost")
        assert mischief.done or isinstance(await offer.ended(), Acknowledged)
        await offer.ended()
        backend.is_hostile = False
        await made.assert_works()


@settings(max_examples=400)
@given(data=st.binary(max_size=200))
def test_no_bytes_break_a_codec(data: bytes) -> None:
    for codec in (source_codec(), sink_codec()):
        try:
            codec.decode(data)
        except MalformedMessage:
            continue
