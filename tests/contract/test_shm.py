"""shm keeps the contract; memory, descriptors and sockets are never left behind, whatever a peer sends."""

import array
import asyncio
import gc
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.contract.holdings import nothing_left, zones_mapped, zones_open
from transfer.backends.base import Backend, Buffer, Link
from transfer.backends.shm.backend import ShmBackend
from transfer.backends.shm.memory import OwnZone
from transfer.backends.shm.place import Place
from transfer.errors import Corrupt, PeerLost
from transfer.frames import FRAME_VERSION, HEADER_BYTES, MAGIC, encode_message, encode_segment_header
from transfer.protocol.messages import AllLanded, source_codec
from transfer.testing import BackendContract, Mesh, TakerPuppet, eventually, mesh

ZONE = 4096


class TestShm(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return ShmBackend()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of its own whose path leaves room for a socket's name; pytest's own may be deep."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class TestShmInAFolder:
    async def test_a_hand_off(self, short: Path) -> None:
        async with nothing_left(), mesh(ShmBackend(folder=short)) as made:
            assert len(os.listdir(short)) == 1
            await made.assert_works()
        assert os.listdir(short) == []

    async def test_what_a_dead_process_left_is_taken_away(self, short: Path) -> None:
        backend = ShmBackend(folder=short)
        living = await backend.listen(lambda link: None)
        dead = short / "dead.pdmesh"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.bind(str(dead))
        stranger = short / "another.sock"
        stranger.touch()
        second = await backend.listen(lambda link: None)
        assert not dead.exists()
        assert stranger.exists()
        assert len(os.listdir(short)) == 3
        await living.close()
        await second.close()

    async def test_another_folder_is_out_of_reach(self, short: Path) -> None:
        (short / "other").mkdir()
        listener = await ShmBackend(folder=short).listen(lambda link: None)
        for backend in (ShmBackend(), ShmBackend(folder=short / "other")):
            assert not backend.reaches(listener.endpoint)
            with pytest.raises(PeerLost, match="another folder"):
                await backend.connect(listener.endpoint)
        (short / "alias").symlink_to(short)
        assert ShmBackend(folder=short / "alias").reaches(listener.endpoint)
        await listener.close()

    async def test_a_path_too_long_for_a_socket(self, short: Path) -> None:
        deep = short / ("d" * 100)
        deep.mkdir()
        with pytest.raises(ValueError, match="use another folder"):
            await ShmBackend(folder=deep).listen(lambda link: None)


# ------------------------------------------------------------ links by hand


@asynccontextmanager
async def linked(backend: Backend) -> AsyncIterator[tuple[Link, Link]]:
    """A sink's end and a source's end, closed in the end."""
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await backend.listen(accepted.put_nowait)
    sink = await backend.connect(listener.endpoint)
    source = await accepted.get()
    try:
        yield sink, source
    finally:
        await sink.close()
        await source.close()
        await listener.close()


@asynccontextmanager
async def dialled(backend: Backend) -> AsyncIterator[tuple[socket.socket, Link]]:
    """A bare socket that has connected to a source, and the source's end."""
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await backend.listen(accepted.put_nowait)
    sock = dial(listener.endpoint)
    source = await accepted.get()
    try:
        yield sock, source
    finally:
        sock.close()
        await source.close()
        await listener.close()


def dial(endpoint: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(Place.here().address(endpoint))
    return sock


async def hand_over(sink: Link, source: Link, zones: list[Buffer]) -> None:
    descriptor = sink.register(zones)
    await sink.send(b"zones")
    assert await source.receive() == b"zones"
    source.attach(descriptor)


async def test_a_window_is_the_zone_itself() -> None:
    backend = ShmBackend()
    zones = [backend.allocate(ZONE) for _ in range(2)]
    async with nothing_left_of(backend, zones), linked(backend) as (sink, source):
        await hand_over(sink, source, zones)
        window = source.window(1, 100)
        assert window is not None
        window[:] = b"w" * 100
        assert zones[1].view[:101] == b"w" * 100 + b"\x00"
        await source.write(1, window)
        await source.write(0, memoryview(b"elsewhere"))
        assert zones[0].view[:10] == b"elsewhere\x00"
        for zone, length in ((2, 1), (-1, 1), (0, ZONE + 1)):
            with pytest.raises(Corrupt):
                source.window(zone, length)
            with pytest.raises(Corrupt):
                await source.write(zone, memoryview(bytes(length)))
        del window


@asynccontextmanager
async def nothing_left_of(backend: Backend, zones: list[Buffer]) -> AsyncIterator[None]:
    """Frees the zones, and fails if any of them is still mapped or open."""
    others = len(zones_open()) - len(zones)
    yield
    for zone in zones:
        backend.free(zone)
    gc.collect()
    assert zones_mapped() == []
    assert len(zones_open()) == others


async def test_a_window_may_be_held_longer_than_its_link() -> None:
    backend = ShmBackend()
    zones = [backend.allocate(ZONE)]
    async with nothing_left_of(backend, zones):
        async with linked(backend) as (sink, source):
            await hand_over(sink, source, zones)
            window = source.window(0, 8)
            assert window is not None
        with pytest.raises(PeerLost):
            source.window(0, 8)
        assert len(zones_mapped()) == 2
        window[:] = b"too late"
        del window


async def test_descriptors_are_held_by_the_sink_alone() -> None:
    backend = ShmBackend()
    zones = [backend.allocate(ZONE) for _ in range(253)]
    before = len(zones_open())
    async with nothing_left_of(backend, zones), linked(backend) as (sink, source):
        await hand_over(sink, source, zones)
        assert len(zones_open()) == before
        assert len(zones_mapped()) == 2 * 253
        with pytest.raises(ValueError, match="landing_zones"):
            sink.register([*zones, zones[0]])


@pytest.mark.parametrize("is_whole", [True, False])
async def test_mappings_are_kept_for_the_next_hand_off_if_this_one_went_well(is_whole: bool) -> None:
    backend = ShmBackend()
    zones = [backend.allocate(ZONE) for _ in range(3)]
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    async with nothing_left_of(backend, zones):
        listener = await backend.listen(accepted.put_nowait)
        for _ in range(2):
            sink = await backend.connect(listener.endpoint)
            source = await accepted.get()
            await hand_over(sink, source, zones)
            if not is_whole:
                await sink.close()
                with pytest.raises(PeerLost):
                    await source.receive()
            await source.close()
            await sink.close()
            assert len(zones_mapped()) == (6 if is_whole else 3)
        await listener.close()
        assert len(zones_mapped()) == 3


async def test_registering_nothing_takes_back_what_was_not_sent() -> None:
    backend = ShmBackend()
    zones = [backend.allocate(ZONE)]
    async with nothing_left_of(backend, zones), linked(backend) as (sink, source):
        descriptor = sink.register(zones)
        sink.register(())
        await sink.send(b"nothing")
        await source.receive()
        with pytest.raises(Corrupt, match="descriptor"):
            source.attach(descriptor)


async def test_foreign_buffers_are_not_zones() -> None:
    async with linked(ShmBackend()) as (sink, _):
        with pytest.raises(ValueError, match="allocate"):
            sink.register([Buffer(memoryview(bytearray(8)))])


@pytest.mark.parametrize("share", [0, 1])
async def test_closing_wakes_who_waits(share: int) -> None:
    async with linked(ShmBackend()) as ends:
        waiting = asyncio.get_running_loop().create_task(ends[share].receive())
        await asyncio.sleep(0.01)
        await ends[share].close()
        with pytest.raises(PeerLost):
            await waiting
        with pytest.raises(PeerLost):
            await ends[share].send(b"more")


async def test_a_clogged_peer_is_waited_for() -> None:
    async with linked(ShmBackend()) as (sink, source):
        message = bytes(60_000)
        sending = asyncio.get_running_loop().create_task(send_many(sink, message, 50))
        await asyncio.sleep(0.05)
        assert not sending.done()
        for _ in range(50):
            assert await source.receive() == message
        await sending


async def test_a_frame_cut_off_by_cancel_breaks_the_link() -> None:
    async with linked(ShmBackend()) as (sink, _):
        sending = asyncio.get_running_loop().create_task(send_many(sink, bytes(60_000), 50))
        await asyncio.sleep(0.05)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(PeerLost):
            await sink.send(b"more")


async def send_many(link: Link, message: bytes, count: int) -> None:
    for _ in range(count):
        await link.send(message)


# ------------------------------------------------------------ peers that send nonsense


def send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def unsealed() -> int:
    fd = os.memfd_create("pdmesh-unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, ZONE)
    return fd


NO_ZONES: dict[str, Callable[[], int]] = {
    "device": lambda: os.open("/dev/null", os.O_RDWR),
    "folder": lambda: os.open("/", os.O_RDONLY),
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "unsealed": unsealed,
}


@pytest.mark.parametrize("case", NO_ZONES)
async def test_a_descriptor_that_is_no_zone(case: str) -> None:
    async with nothing_left(), dialled(ShmBackend()) as (sock, source):
        fds = [NO_ZONES[case]() for _ in range(3)]
        send_fds(sock, encode_message(b"zones"), fds)
        for fd in fds:
            os.close(fd)
        with pytest.raises(Corrupt):
            await source.receive()


@pytest.mark.parametrize("change", ["fewer", "more", "swapped", "size", "junk", "not a list", "none sent"])
async def test_a_descriptor_that_does_not_fit_its_zones(change: str) -> None:
    backend = ShmBackend()
    zones = [backend.allocate(ZONE), backend.allocate(ZONE)]
    bigger = backend.allocate(2 * ZONE)
    async with nothing_left_of(backend, [*zones, bigger]), linked(backend) as (sink, source):
        wrong = {
            "fewer": sink.register(zones[:1]),
            "more": sink.register([*zones, bigger]),
            "swapped": sink.register(zones[::-1]),
            "size": sink.register([zones[0], bigger]),
            "junk": b"\xc1junk",
            "not a list": b"\x01",
            "none sent": sink.register(zones),
        }
        if change == "none sent":
            sink.register(())
        await sink.send(b"zones")
        await source.receive()
        with pytest.raises(Corrupt, match="descriptor"):
            source.attach(wrong[change])
        with pytest.raises(Corrupt):
            source.window(0, 1)


async def test_a_flood_of_descriptors_is_bounded() -> None:
    async with nothing_left():
        backend = ShmBackend()
        zones = [backend.allocate(ZONE) for _ in range(253)]
        async with dialled(backend) as (sock, source):
            before = len(zones_open())
            for _ in range(20):
                send_fds(sock, encode_message(b"zones"), [fd_of(zone) for zone in zones])
                await source.receive()
            assert len(zones_mapped()) == 2 * 253
            assert len(zones_open()) == before
        for zone in zones:
            backend.free(zone)


def fd_of(zone: Buffer) -> int:
    assert isinstance(zone.handle, OwnZone)
    return zone.handle.fd


async def test_descriptors_from_a_source_are_closed_at_once() -> None:
    backend, before = ShmBackend(), len(zones_open())
    async with nothing_left():
        place = Place.here()
        endpoint = place.new_endpoint()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(place.address(endpoint))
            listening.listen()
            link = await backend.connect(endpoint)
            peer, _ = listening.accept()
            zones = [backend.allocate(ZONE) for _ in range(5)]
            send_fds(peer, encode_message(b"yours"), [fd_of(zone) for zone in zones])
            with pytest.raises(Corrupt, match="5 descriptors"):
                await link.receive()
            for zone in zones:
                backend.free(zone)
            assert len(zones_open()) == before
            peer.close()
            await link.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00" * 4096,
        b"\xff" * (1 << 16),
        MAGIC + bytes([FRAME_VERSION, 1]) + b"\x00\x00" + b"\xff" * (HEADER_BYTES - 8),
        MAGIC + bytes([99, 1]) + b"\x00" * (HEADER_BYTES - 6),
        encode_segment_header(0, 1),
        encode_message(b"", mark=1),
    ],
    ids=["http", "zeros", "ones", "huge", "version", "segment", "mark"],
)
async def test_not_frames(data: bytes) -> None:
    async with nothing_left(), mesh(ShmBackend()) as made:
        with dial(made.endpoints[0]) as sock:
            sock.sendall(data)
            await eventually(lambda: made.source.connections_broken == 1)
        await made.assert_works()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
async def test_a_truncated_open(share: float) -> None:
    async with nothing_left(), mesh(ShmBackend()) as made:
        frame = encode_message(source_codec().encode(AllLanded()))
        with dial(made.endpoints[0]) as sock:
            sock.sendall(frame[: int(len(frame) * share)])
            sock.shutdown(socket.SHUT_WR)
            await eventually(lambda: made.source.connections_broken == 1)
        await made.assert_works()


async def test_messages_arrive_however_the_stream_is_cut() -> None:
    async with dialled(ShmBackend()) as (sock, source):
        for byte in encode_message(b"first") + encode_message(b""):
            sock.send(bytes([byte]))
            await asyncio.sleep(0)
        sock.sendall(encode_message(b"third") + encode_message(b"fourth"))
        assert [await source.receive() for _ in range(4)] == [b"first", b"", b"third", b"fourth"]
        flipped = bytearray(encode_message(b"fifth"))
        flipped[HEADER_BYTES] ^= 4
        sock.sendall(flipped)
        with pytest.raises(Corrupt, match="checksum"):
            await source.receive()


async def test_hand_offs_leave_nothing() -> None:
    async with nothing_left(), mesh(ShmBackend()) as made:
        await opened_and_left(made)
        await made.assert_works()


async def opened_and_left(made: Mesh) -> None:
    """A taker that hands its zones over and is gone."""
    puppet = TakerPuppet(await made.backend.connect(made.endpoints[0]), made)
    await puppet.say(puppet.open())
    await eventually(lambda: made.source.holdings().parked == 1)
    await puppet.link.close()
