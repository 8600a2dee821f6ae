"""Zones: sealed memory that two mappings have, told apart by a token."""

import fcntl
import gc
import os

import pytest

from transfer.backends.shm.memory import TOKEN_BYTES, PeerZone, free_zone, make_zone, map_zone
from transfer.errors import Corrupt


def shared(num_bytes: int) -> tuple[memoryview, PeerZone]:
    view, zone = make_zone(num_bytes)
    peer = map_zone(os.dup(zone.fd))
    assert peer.identity == zone.identity
    os.close(zone.fd)
    return view, peer


@pytest.mark.parametrize("num_bytes", [1, 4095, 4096, 1 << 20])
def test_both_see_the_same_bytes(num_bytes: int) -> None:
    view, peer = shared(num_bytes)
    assert bytes(view) == bytes(num_bytes)
    peer.window(num_bytes)[:] = b"\x05" * num_bytes
    assert bytes(view) == b"\x05" * num_bytes
    assert len(view) == peer.identity.size_bytes == num_bytes


def test_what_is_a_window() -> None:
    _, peer = shared(4096)
    assert peer.is_window(peer.window(17))
    assert not peer.is_window(memoryview(bytearray(17)))
    assert not peer.is_window(shared(4096)[1].window(17))


def test_the_size_cannot_be_changed() -> None:
    _, zone = make_zone(4096)
    for size in (0, 4096, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(zone.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(zone.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert not os.get_inheritable(zone.fd)
    os.close(zone.fd)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK])
def test_memory_that_could_shrink_or_grow_is_refused_and_closed(seals: int) -> None:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(Corrupt, match="sealed"):
        map_zone(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("size", [0, TOKEN_BYTES])
def test_memory_without_bytes_is_refused(size: int) -> None:
    fd = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with pytest.raises(Corrupt):
        map_zone(fd)


def test_memory_that_may_not_be_written_is_refused() -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    with pytest.raises(Corrupt, match="no zone"):
        map_zone(fd)


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    view, zone = make_zone(4096)
    piece = view[:4]
    free_zone(view, zone)
    gc.collect()
    piece[:] = b"good"
    assert bytes(piece) == b"good"
    with pytest.raises(ValueError, match="released"):
        view[0]
