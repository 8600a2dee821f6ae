"""tcp keeps the contract, and bytes that are not frames end their own connection only."""

import asyncio

import pytest

from tests.contract.tcp_wire import ALWAYS, address_of, hang_up, is_turned_away, pair
from transfer.backends.base import Backend, Link
from transfer.backends.tcp import TcpBackend
from transfer.errors import Corrupt, PeerLost
from transfer.frames import (
    FRAME_VERSION,
    HEADER_BYTES,
    MAGIC,
    TOKEN_BYTES,
    encode_hello,
    encode_invite,
    encode_join,
    encode_message,
    encode_segment_header,
)
from transfer.protocol.messages import source_codec
from transfer.testing import BackendContract, Mesh, TakerPuppet, eventually, mesh


class TestTcp(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return TcpBackend()


class TestTcpStriped(BackendContract):
    """The same hand-offs, which are small, over data connections."""

    @pytest.fixture
    def backend(self) -> Backend:
        return TcpBackend(striping=ALWAYS)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00" * 4096,
        b"\xff" * (1 << 20),
        MAGIC + bytes([FRAME_VERSION, 1]) + b"\x00\x00" + b"\xff" * 4 + b"\x00" * 12,
        MAGIC + bytes([FRAME_VERSION, 9]) + b"\x00" * 18,
        MAGIC + bytes([99, 1]) + b"\x00" * 18,
        encode_message(b"before a hello"),
        encode_segment_header(0, 1),
        encode_segment_header(0, 0xFFFFFFFF),
        encode_invite(bytes(TOKEN_BYTES)),
        encode_join(bytes(TOKEN_BYTES), 0, 2),
    ],
    ids=["http", "zeros", "ones", "huge", "kind", "version", "message", "segment", "huge_segment", "invite", "join"],
)
async def test_not_an_introduction(data: bytes) -> None:
    async with mesh(TcpBackend()) as made:
        assert await is_turned_away(data, made.endpoints[0])
        assert made.source.connections_broken == 0
        await made.assert_works()


async def raw(made: Mesh, data: bytes, *, close: bool = False) -> None:
    """Send HELLO and `data` on a socket of one's own and wait until the source has given the connection up."""
    _, writer = await asyncio.open_connection(*address_of(made.endpoints[0]))
    before = made.source.connections_broken
    try:
        writer.write(encode_hello() + data)
        if close:
            writer.write_eof()
        await eventually(lambda: made.source.connections_broken == before + 1)
    finally:
        await hang_up(writer)


async def open_frame(made: Mesh) -> bytes:
    link = await TcpBackend().connect(made.endpoints[0])
    message = source_codec().encode(TakerPuppet(link, made).open())
    await link.close()
    await eventually(lambda: made.source.connections_broken == 1)
    return encode_message(message)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        encode_hello(),
        encode_segment_header(0, 1),
        encode_segment_header(0, 0xFFFFFFFF, 0xFFFFFFFF),
        encode_invite(bytes(TOKEN_BYTES)),
        encode_join(bytes(TOKEN_BYTES), 0, 2),
        encode_message(b"after what cannot be", mark=1),
    ],
    ids=["http", "hello", "segment", "huge_segment", "invite", "join", "mark"],
)
async def test_not_what_a_taker_sends(data: bytes) -> None:
    async with mesh(TcpBackend()) as made:
        await raw(made, data)
        await made.assert_works()


async def test_a_flipped_bit_anywhere_in_an_open() -> None:
    async with mesh(TcpBackend()) as made:
        offer = made.offer()
        frame = await open_frame(made)
        for at in range(0, len(frame), 7):
            flipped = bytearray(frame)
            flipped[at] ^= 1 << at % 8
            await raw(made, bytes(flipped), close=True)
        assert not offer.is_taken
        await made.take()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
async def test_a_truncated_open(share: float) -> None:
    async with mesh(TcpBackend()) as made:
        frame = await open_frame(made)
        await raw(made, frame[: int(len(frame) * share)], close=True)
        await made.assert_works()


async def test_a_frame_cut_off_by_cancel_breaks_the_link() -> None:
    async with pair(TcpBackend()) as made:
        write = asyncio.get_running_loop().create_task(made.source.write(0, memoryview(bytes(64 << 20))))
        await asyncio.sleep(0.05)
        assert not write.done()
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        with pytest.raises(PeerLost):
            await made.source.send(b"more")


async def test_messages_arrive_however_the_stream_is_cut() -> None:
    links: asyncio.Queue[Link] = asyncio.Queue()
    listener = await TcpBackend().listen(links.put_nowait)
    _, writer = await asyncio.open_connection(*address_of(listener.endpoint))
    for byte in encode_hello() + encode_message(b"first") + encode_message(b""):
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    link = await links.get()
    writer.write(encode_message(b"third") + encode_message(b"fourth"))
    assert [await link.receive() for _ in range(4)] == [b"first", b"", b"third", b"fourth"]
    flipped = bytearray(encode_message(b"fifth"))
    flipped[HEADER_BYTES] ^= 4
    writer.write(flipped)
    with pytest.raises(Corrupt, match="checksum"):
        await link.receive()
    await hang_up(writer)
    await link.close()
    await listener.close()


@pytest.mark.parametrize("endpoint", ["tcp://", "tcp://host", "tcp://h:65536", "udp://127.0.0.1:1", "127.0.0.1:1"])
async def test_not_an_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError, match="not a tcp endpoint"):
        await TcpBackend().connect(endpoint)
