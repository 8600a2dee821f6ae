"""Memory that two processes have mapped: anonymous, of fixed size, gone when the last of them has let go."""

import ctypes
import fcntl
import mmap
import os
import secrets
import weakref
from dataclasses import dataclass
from functools import cache, cached_property

import msgspec

from transfer.errors import Corrupt

TOKEN_BYTES = 16

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_MADV_POPULATE_WRITE = 23
"""Linux 5.14 and later: map the pages now, at a sixth of what they cost one fault at a time."""


class ZoneIdentity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What D says of one zone. The token is random and lies behind the zone's bytes too, so that a descriptor and the
    memory that came with it can be told to belong together."""

    token: bytes
    size_bytes: int


@dataclass(frozen=True, eq=False)
class OwnZone:
    """D's handle of a zone that it made: the open descriptor, which `free_zone` closes."""

    fd: int
    identity: ZoneIdentity


@dataclass(eq=False)
class PeerZone:
    """P's mapping of one of D's zones; unmapped when the last view of it is gone, which a caller may hold longer."""

    memory: memoryview
    """The zone's bytes, then the token."""
    inode: tuple[int, int]
    """st_dev and st_ino: unique while the mapping lives, except that a kernel's counter of inodes may wrap."""
    populated_bytes: int = 0
    """From the start: bytes whose pages are mapped already."""

    @cached_property
    def identity(self) -> ZoneIdentity:
        """Read from the memory."""
        return ZoneIdentity(bytes(self.memory[-TOKEN_BYTES:]), len(self.memory) - TOKEN_BYTES)

    def window(self, length: int) -> memoryview:
        """The first `length` bytes of the zone, with their pages."""
        window = self.memory[:length]
        if length > self.populated_bytes:
            _populate(window)
            self.populated_bytes = length
        return window

    def is_window(self, data: memoryview) -> bool:
        """Whether `data` came from `window`."""
        return data.obj is self.memory.obj


def make_zone(num_bytes: int) -> tuple[memoryview, OwnZone]:
    """D: a new zone, its view and its handle. Raises OSError.

    Its pages are taken here and now, so that they count as D's where memory is accounted for, and not as P's, which
    would touch them first.
    """
    fd = os.memfd_create("pdmesh-zone", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        identity = ZoneIdentity(secrets.token_bytes(TOKEN_BYTES), num_bytes)
        os.posix_fallocate(fd, 0, num_bytes + TOKEN_BYTES)
        os.pwrite(fd, identity.token, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
        return _map(fd, num_bytes + TOKEN_BYTES)[:num_bytes], OwnZone(fd, identity)
    except BaseException:
        os.close(fd)
        raise


def free_zone(view: memoryview, zone: OwnZone) -> None:
    """D: let go of it. Who else has mapped it keeps memory that this process never looks at again."""
    os.close(zone.fd)
    view.release()


def map_zone(fd: int) -> PeerZone:
    """P: the zone behind a descriptor that D has sent, which is closed. Raises Corrupt for any other descriptor."""
    try:
        about = os.fstat(fd)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if seals & _SEALS != _SEALS or about.st_size <= TOKEN_BYTES:
            raise Corrupt(f"a zone of {about.st_size} bytes with seals {seals:#x}: its size must be sealed (and not 0)")
        return PeerZone(_map(fd, about.st_size), (about.st_dev, about.st_ino))
    except OSError as error:
        raise Corrupt(f"a descriptor that is no zone: {error}") from error
    finally:
        os.close(fd)


def _populate(view: memoryview) -> None:
    """Map the pages of `view`, which starts on a page, at once. Where the kernel cannot, they come one by one."""
    _libc().madvise(ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view), _MADV_POPULATE_WRITE)


def _map(fd: int, num_bytes: int) -> memoryview:
    """Not mmap.mmap: that keeps a copy of the descriptor as long as the mapping lives, and there may be thousands."""
    libc = _libc()
    address = libc.mmap(None, num_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {num_bytes} bytes: {os.strerror(code)}")
    block = (ctypes.c_ubyte * num_bytes).from_address(address)
    # Every view refers to the block. At exit threads may still be copying, so nothing is unmapped then.
    weakref.finalize(block, libc.munmap, address, num_bytes).atexit = False
    return memoryview(block).cast("B")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
