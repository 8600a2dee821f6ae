"""tcp keeps the contract, and bytes that are not frames end their own connection only."""

import asyncio
import socket

import pytest

from transfer.backends.base import Backend
from transfer.backends.registry import backend_class
from transfer.backends.tcp import TcpBackend
from transfer.errors import Corrupt, PeerLost
from transfer.frames import FRAME_VERSION, HEADER_BYTES, MAGIC, encode_message, encode_segment_header
from transfer.protocol.messages import source_codec
from transfer.testing import BackendContract, Mesh, TakerPuppet, eventually, mesh


class TestTcp(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return TcpBackend()


async def raw(made: Mesh, data: bytes, *, close: bool = False) -> None:
    """Send `data` on a socket of its own and wait until the source has given the connection up."""
    host, port = made.endpoints[0].removeprefix("tcp://").split(":")
    sock = socket.create_connection((host, int(port)))
    sock.setblocking(False)
    before = made.source.connections_broken
    loop = asyncio.get_running_loop()
    try:
        try:
            await loop.sock_sendall(sock, data)
            if close:
                sock.shutdown(socket.SHUT_WR)
        except (ConnectionResetError, BrokenPipeError):
            pass
        await eventually(lambda: made.source.connections_broken == before + 1)
    finally:
        sock.close()


async def open_frame(made: Mesh) -> bytes:
    link = await TcpBackend().connect(made.endpoints[0])
    puppet = TakerPuppet(link, made)
    message = source_codec().encode(puppet.open())
    await link.close()
    await eventually(lambda: made.source.connections_broken == 1)
    return encode_message(message)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00" * 4096,
        b"\xff" * (1 << 20),
        MAGIC + bytes([FRAME_VERSION, 1]) + b"\x00\x00" + b"\xff\xff\xff\xff" + b"\x00" * 8,
        MAGIC + bytes([FRAME_VERSION, 9]) + b"\x00" * 14,
        MAGIC + bytes([99, 1]) + b"\x00" * 14,
        encode_segment_header(0, 1),
        encode_segment_header(0, 0xFFFFFFFF),
    ],
    ids=["http", "zeros", "ones", "huge", "kind", "version", "segment", "huge segment"],
)
async def test_not_frames(data: bytes) -> None:
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
    links: asyncio.Queue[object] = asyncio.Queue()
    listener = await TcpBackend().listen(links.put_nowait)
    link = await TcpBackend().connect(listener.endpoint)
    peer = await links.get()
    write = asyncio.get_running_loop().create_task(link.write(0, memoryview(bytes(64 << 20))))
    await asyncio.sleep(0.05)
    assert not write.done()
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    with pytest.raises(PeerLost):
        await link.send(b"more")
    await link.close()
    await peer.close()  # type: ignore[attr-defined]
    await listener.close()


async def test_messages_arrive_however_the_stream_is_cut() -> None:
    links: asyncio.Queue[object] = asyncio.Queue()
    listener = await TcpBackend().listen(links.put_nowait)
    host, port = listener.endpoint.removeprefix("tcp://").split(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link = await links.get()
    for byte in encode_message(b"first") + encode_message(b""):
        sock.send(bytes([byte]))
        await asyncio.sleep(0)
    sock.sendall(encode_message(b"third") + encode_message(b"fourth"))
    assert [await link.receive() for _ in range(4)] == [b"first", b"", b"third", b"fourth"]  # type: ignore[attr-defined]
    flipped = bytearray(encode_message(b"fifth"))
    flipped[HEADER_BYTES] ^= 4
    sock.sendall(flipped)
    with pytest.raises(Corrupt, match="checksum"):
        await link.receive()  # type: ignore[attr-defined]
    sock.close()
    await link.close()  # type: ignore[attr-defined]
    await listener.close()


@pytest.mark.parametrize("endpoint", ["tcp://", "tcp://host", "udp://127.0.0.1:1", "127.0.0.1:1"])
async def test_not_an_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError, match="not a tcp endpoint"):
        await TcpBackend().connect(endpoint)


def test_registry() -> None:
    assert backend_class("tcp") is TcpBackend
    with pytest.raises(ValueError, match="inproc"):
        backend_class("smoke")
