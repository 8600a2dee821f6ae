"""NIXL: one-sided WRITE by its UCX backend over TCP."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import msgspec

from common.clock import Clock
from services.bench.transfer.peers.base import Bytes, Peer, RawGiver, RawTaker, poll

_GIVER, _TAKER = "giver", "taker"
_START, _DONE = b"start", b"done"


class _Hello(msgspec.Struct, frozen=True):
    metadata: bytes
    address: int


class Nixl(Peer):
    """The progress thread is off: with it a WRITE over TCP is several times slower, and on two cores it starves."""

    name = "nixl"
    settings = "WRITE, backend UCX, UCX_TLS=tcp,self, no progress thread, both sides poll"
    environ: Mapping[str, str] = MappingProxyType({"UCX_TLS": "tcp,self"})

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def version(self) -> str:
        """Of the wheel."""
        import_module("nixl_cu12")
        return version("nixl-cu12")

    def giver(self, buffer: Bytes) -> RawGiver:
        """See Peer."""
        return _NixlGiver(buffer, self._clock)

    def taker(self, buffer: Bytes) -> RawTaker:
        """See Peer."""
        return _NixlTaker(buffer, self._clock)


class _End:
    """An agent and its one registered buffer."""

    def __init__(self, name: str, buffer: Bytes) -> None:
        api = import_module("nixl_cu12._api")
        config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self.agent: Any = api.nixl_agent(name, config)
        self.address = int(buffer.ctypes.data)
        self._registered = self.agent.register_memory([(self.address, buffer.nbytes, 0, "")], mem_type="DRAM")

    def hello(self) -> bytes:
        return msgspec.json.encode(_Hello(self.agent.get_agent_metadata(), self.address))

    def add(self, hello: bytes) -> _Hello:
        told = msgspec.json.decode(hello, type=_Hello)
        self.agent.add_remote_agent(told.metadata)
        return told

    def has_heard(self, peer: str, notice: bytes) -> bool:
        heard = self.agent.get_new_notifs()
        return notice in heard.get(peer, [])

    def close(self) -> None:
        if self._registered is not None:
            self.agent.deregister_memory(self._registered)
            self._registered = None


class _NixlGiver(RawGiver):
    def __init__(self, buffer: Bytes, clock: Clock) -> None:
        self._end = _End(_GIVER, buffer)
        self._clock = clock
        self._zone = 0

    def meet(self, taker: bytes) -> bytes:
        self._zone = self._end.add(taker).address
        return self._end.hello()

    def give(self, num_bytes: int) -> None:
        agent = self._end.agent
        mine = agent.get_xfer_descs([(self._end.address, num_bytes, 0)], mem_type="DRAM")
        its = agent.get_xfer_descs([(self._zone, num_bytes, 0)], mem_type="DRAM")
        handle = agent.initialize_xfer("WRITE", mine, its, _TAKER, _DONE)
        try:
            poll(lambda: self._end.has_heard(_TAKER, _START), self._clock.now, "waiting for the taker")
            agent.transfer(handle)
            poll(lambda: bool(agent.check_xfer_state(handle) == "DONE"), self._clock.now, "a WRITE")
        finally:
            agent.release_xfer_handle(handle)

    def close(self) -> None:
        self._end.close()


class _NixlTaker(RawTaker):
    def __init__(self, buffer: Bytes, clock: Clock) -> None:
        self._end = _End(_TAKER, buffer)
        self._clock = clock

    def hello(self) -> bytes:
        return self._end.hello()

    def meet(self, giver: bytes) -> None:
        self._end.add(giver)

    def take(self, num_bytes: int) -> None:  # noqa: ARG002 - the giver's WRITE says how much
        self._end.agent.send_notif(_GIVER, _START)
        poll(lambda: self._end.has_heard(_GIVER, _DONE), self._clock.now, "waiting for a WRITE")

    def close(self) -> None:
        self._end.close()
