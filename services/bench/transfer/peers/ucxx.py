"""UCX by ucxx: tagged messages over TCP."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numpy as np

from common.clock import Clock
from services.bench.transfer.peers.base import Bytes, Peer, RawGiver, RawTaker, poll

_OPTIONS: Mapping[str, str] = MappingProxyType({"TLS": "tcp,self", "RNDV_SCHEME": "put_zcopy", "PROTO_ENABLE": "n"})
_BLOCK_MS = 10
"""A wake-up can be missed."""
_START, _DATA = 1, 2
"""Tags."""


class Ucxx(Peer):
    """The core API, waiting for events: the one on asyncio is slower, and pollers starve each other on few cores. UCX
    takes loopback for a slow network and would pick a protocol that copies at both ends; its older selection of
    protocols obeys the scheme that is given."""

    name = "ucxx"
    settings = (
        f"core API, tag_send, {', '.join(f'{name}={value}' for name, value in _OPTIONS.items())}, both sides block"
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def version(self) -> str:
        """Of the wheel."""
        import_module("ucxx")
        return version("ucxx-cu12")

    def giver(self, buffer: Bytes) -> RawGiver:
        """See Peer."""
        return _UcxxGiver(buffer, self._clock)

    def taker(self, buffer: Bytes) -> RawTaker:
        """See Peer."""
        return _UcxxTaker(buffer, self._clock)


class _End:
    """A worker, and an endpoint to the other side's. It keeps what is in flight alive: ucxx does not."""

    def __init__(self, clock: Clock) -> None:
        self._api: Any = import_module("ucxx._lib.libucxx")
        self._array: Any = import_module("ucxx._lib.arr").Array
        self._clock = clock
        self._context = self._api.UCXContext(
            dict(_OPTIONS), feature_flags=(self._api.Feature.TAG, self._api.Feature.WAKEUP)
        )
        self._worker = self._api.UCXWorker(self._context)
        self._worker.init_blocking_progress_mode()
        self._endpoint: Any = None
        self._note = np.zeros(1, dtype=np.uint8)

    def hello(self) -> bytes:
        return bytes(self._worker.address.tobytes())

    def connect(self, hello: bytes) -> None:
        address = self._api.UCXAddress.create_from_buffer(hello)
        self._endpoint = self._worker.create_endpoint_from_worker_address(address, endpoint_error_handling=True)

    def send(self, data: Bytes, tag: int) -> None:
        array = self._array(data)
        self._finish(self._endpoint.tag_send(array, self._api.UCXXTag(tag)), array)

    def receive(self, data: Bytes, tag: int) -> None:
        array = self._array(data)
        self._finish(self._endpoint.tag_recv(array, self._api.UCXXTag(tag)), array)

    def send_note(self, tag: int) -> None:
        self.send(self._note, tag)

    def receive_note(self, tag: int) -> None:
        self.receive(self._note, tag)

    def _finish(self, request: Any, in_flight: Any) -> None:  # noqa: ARG002 - held until the request is done
        def is_done() -> bool:
            self._worker.progress_worker_event(_BLOCK_MS)
            return bool(request.completed)

        poll(is_done, self._clock.now, "a message of ucxx")
        request.check_error()

    def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close_blocking()
            self._endpoint = None


class _UcxxGiver(RawGiver):
    def __init__(self, buffer: Bytes, clock: Clock) -> None:
        self._buffer = buffer
        self._end = _End(clock)

    def meet(self, taker: bytes) -> bytes:
        self._end.connect(taker)
        return self._end.hello()

    def give(self, num_bytes: int) -> None:
        self._end.receive_note(_START)
        self._end.send(self._buffer[:num_bytes], _DATA)

    def close(self) -> None:
        self._end.close()


class _UcxxTaker(RawTaker):
    def __init__(self, buffer: Bytes, clock: Clock) -> None:
        self._buffer = buffer
        self._end = _End(clock)

    def hello(self) -> bytes:
        return self._end.hello()

    def meet(self, giver: bytes) -> None:
        self._end.connect(giver)

    def take(self, num_bytes: int) -> None:
        self._end.send_note(_START)
        self._end.receive(self._buffer[:num_bytes], _DATA)

    def close(self) -> None:
        self._end.close()
