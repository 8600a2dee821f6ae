"""Mooncake's transfer engine: one-sided WRITE over TCP."""

import re
import socket
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import packages_distributions, version
from types import MappingProxyType
from typing import Any

import msgspec

from common.clock import Clock
from services.bench.transfer.peers.base import DEADLINE_S, Bytes, Peer, RawGiver, RawTaker, poll

_MODULE = "mooncake.engine"
_WHEEL = "mooncake-transfer-engine"
"""Several wheels, one for each kind of device, bring the same module; their names begin so."""
_REMEDY = (
    f"`pip install {_WHEEL}-non-cuda` brings it ({_WHEEL} is for CUDA 12); "
    "it links libibverbs.so.1, in Debian the package libibverbs1"
)
_ACKNOWLEDGED = (0, 3, 12)
"""The first version whose WRITE is done when it has landed, not when it has left."""

_HOST = "127.0.0.1"
_NO_BATCH = (0, 2**64 - 1)
"""What versions return in place of a batch when they refuse it."""
_LOOK_S = 1e-4
_MOVING, _MOVED = 0, 1
_START, _DONE, _FAILED = b"s", b"d", b"f"


class _Hello(msgspec.Struct, frozen=True):
    segment: str
    address: int


class Mooncake(Peer):
    """Its own calls that wait spin, which on two cores takes one from the threads that move the bytes: so a WRITE is
    submitted, and looked at now and then. The receiving side learns nothing from the library; as in the connectors of
    the engines that use it, a connection beside it says when to start and when it is done."""

    name = "mooncake"
    settings = (
        "P2PHANDSHAKE, tcp, transfer_submit_write of one piece, MC_TCP_SLICE_SIZE=1 MiB, "
        f"looked at every {_LOOK_S * 1e6:.0f} µs, start and end by a socket"
    )
    environ: Mapping[str, str] = MappingProxyType(
        {"MC_FORCE_TCP": "1", "MC_TCP_SLICE_SIZE": str(1 << 20), "MC_LOG_LEVEL": "ERROR"}
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def version(self) -> str:
        """Of the wheel; ImportError says what to install, also where it is too old to be timed."""
        try:
            import_module(_MODULE)
        except ImportError as error:
            raise ImportError(f"{error}; {_REMEDY}") from error
        wheels = [name for name in packages_distributions().get("mooncake", ()) if name.startswith(_WHEEL)]
        if not wheels:
            raise ImportError(f"no installed package says that {_MODULE} is its own; {_REMEDY}")
        return acknowledging(version(wheels[0]))

    def giver(self, buffer: Bytes) -> RawGiver:
        """See Peer."""
        return _MooncakeGiver(buffer, self._clock)

    def taker(self, buffer: Bytes) -> RawTaker:
        """See Peer."""
        return _MooncakeTaker(buffer)


def acknowledging(found: str) -> str:
    """`found`, a version; raises ImportError if it says too early that a WRITE is done."""
    if tuple(int(number) for number in re.findall(r"\d+", found)[:3]) < _ACKNOWLEDGED:
        needed = ".".join(map(str, _ACKNOWLEDGED))
        raise ImportError(f"version {found} ends a WRITE before it has landed; install {needed} or later")
    return found


class _Engine:
    """An engine and its one registered buffer. It listens on every interface: no setting keeps it from that."""

    def __init__(self, buffer: Bytes) -> None:
        self._engine: Any = import_module(_MODULE).TransferEngine()
        _demand(self._engine.initialize(_HOST, "P2PHANDSHAKE", "tcp", ""), "initialize")
        self._address = int(buffer.ctypes.data)
        _demand(self._engine.register_memory(self._address, buffer.nbytes), "register_memory")

    def hello(self) -> _Hello:
        return _Hello(f"{_HOST}:{self._engine.get_rpc_port()}", self._address)

    def submit(self, zone: _Hello, num_bytes: int) -> int:
        """Begin to write the buffer's first bytes into `zone`; the batch to ask for."""
        batch = int(self._engine.transfer_submit_write(zone.segment, self._address, zone.address, num_bytes))
        if batch in _NO_BATCH:  # asking for it would crash the process
            raise OSError(f"mooncake takes no WRITE of {num_bytes} bytes to {zone.segment}; its log says why")
        return batch

    def has_moved(self, batch: int) -> bool:
        """Not to be asked again once it has, or once this has raised OSError: then the batch is gone."""
        if (status := self._engine.transfer_check_status(batch)) not in (_MOVING, _MOVED):
            raise OSError(f"a WRITE of mooncake failed with status {status}; its log says why")
        return bool(status == _MOVED)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.unregister_memory(self._address)
            self._engine = None


class _MooncakeGiver(RawGiver):
    def __init__(self, buffer: Bytes, clock: Clock) -> None:
        self._engine = _Engine(buffer)
        self._clock = clock
        self._listener = socket.create_server((_HOST, 0))
        self._listener.settimeout(DEADLINE_S)
        self._connection: socket.socket | None = None
        self._zone = _Hello("", 0)

    def meet(self, taker: bytes) -> bytes:
        self._zone = msgspec.json.decode(taker, type=_Hello)
        return str(self._listener.getsockname()[1]).encode()

    def give(self, num_bytes: int) -> None:
        if self._connection is None:
            self._connection, _ = self._listener.accept()
            _prepare(self._connection)
        _expect(self._connection, _START)
        end = _FAILED
        try:
            self._write(num_bytes)
            end = _DONE
        finally:
            self._connection.sendall(end)

    def _write(self, num_bytes: int) -> None:
        batch = self._engine.submit(self._zone, num_bytes)

        def has_moved() -> bool:
            if moved := self._engine.has_moved(batch):
                return moved
            time.sleep(_LOOK_S)
            return False

        poll(has_moved, self._clock.now, "a WRITE of mooncake")

    def close(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._engine.close()


class _MooncakeTaker(RawTaker):
    def __init__(self, buffer: Bytes) -> None:
        self._engine = _Engine(buffer)
        self._connection: socket.socket | None = None

    def hello(self) -> bytes:
        return msgspec.json.encode(self._engine.hello())

    def meet(self, giver: bytes) -> None:
        self._connection = socket.create_connection((_HOST, int(giver)))
        _prepare(self._connection)

    def take(self, num_bytes: int) -> None:  # noqa: ARG002 - the giver's WRITE says how much
        assert self._connection is not None, "meet comes first"
        self._connection.sendall(_START)
        _expect(self._connection, _DONE)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._engine.close()


def _demand(status: int, call: str) -> None:
    if status != 0:
        raise OSError(f"mooncake: {call} failed with status {status}; its log says why")


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(DEADLINE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _expect(connection: socket.socket, mark: bytes) -> None:
    if (heard := connection.recv(1)) != mark:
        raise ConnectionError("the other side could not write" if heard == _FAILED else "the other side is gone")
