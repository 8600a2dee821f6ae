"""Data connections, each with a thread that moves its bytes: P's send stripes of segments, D's receive them."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import TypeVar

from transfer.backends.tcp.stream import Pipe
from transfer.backends.tcp.zones import LandingZones
from transfer.errors import Corrupt, PeerLost, TransferError
from transfer.frames import HEADER_BYTES, FrameKind, decode_header, encode_segment_header
from transfer.waiting import settle

THREAD_NAME = "tcp-lane"


class Lane:
    """Owns a pipe and its thread. Made and used on the event loop; `start_all` and then `end_all` must follow."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._left: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def start(self) -> None:
        """Begin to work; raises RuntimeError when the machine has no thread to give."""
        self._thread.start()

    def shut(self) -> None:
        """Let nothing block in the lane any more; its thread fails at once. Idempotent."""
        self._pipe.shut()

    def stop(self) -> None:
        """Shut it, and let its thread end. Idempotent."""
        self.shut()
        if not self._has_begun and not self._left.done():
            self._leave()  # there is no thread that would

    @property
    def left(self) -> "asyncio.Future[None]":
        """Done when the thread is at its end, or stopped before it began."""
        return self._left

    def release(self) -> None:
        """Close the connection of a lane that has left. Idempotent."""
        if self._has_begun:
            self._thread.join()
        self._pipe.close()

    @property
    def _has_begun(self) -> bool:
        return self._thread.ident is not None

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._pipe.shut()
            post(self._loop, self._leave)

    def _work(self) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        self._left.set_result(None)


class _Delivery:
    """One segment in stripes: `done` when no lane needs its data any more."""

    def __init__(self, lanes: Sequence["SendingLane"]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes = lanes
        self._reports: list[PeerLost | None] = []

    def report(self, error: PeerLost | None) -> None:
        """A lane has ended with its stripe; called once in the thread of each. One that fails fails the others."""
        self._reports.append(error)
        if error is not None:
            self.give_up()
        if len(self._reports) == len(self._lanes):
            post(self.done.get_loop(), self._resolve)

    def give_up(self) -> None:
        """Make every lane report at once."""
        for lane in self._lanes:
            lane.shut()

    def _resolve(self) -> None:
        if self.done.done():
            return  # the last two lanes saw each other's report
        errors = [error for error in self._reports if error is not None]
        if errors:
            self.done.set_exception(errors[0])
        else:
            self.done.set_result(None)


@dataclass(frozen=True)
class _Stripe:
    header: bytes
    data: memoryview
    delivery: _Delivery


class SendingLane(Lane):
    """P's end."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(pipe)
        self._stripes: SimpleQueue[_Stripe | None] = SimpleQueue()

    def send(self, stripe: _Stripe) -> None:
        """In turn; the thread reports to the stripe's delivery."""
        self._stripes.put(stripe)

    def stop(self) -> None:
        """Shut it, and let its thread end when it has reported what it was given. Idempotent."""
        super().stop()
        self._stripes.put(None)

    def _work(self) -> None:
        while (stripe := self._stripes.get()) is not None:
            error: PeerLost | None = PeerLost("the thread of a data connection failed")
            try:
                self._pipe.send(stripe.header)
                self._pipe.send(stripe.data)
                error = None
            except PeerLost as lost:
                error = _bare(lost)
            finally:
                stripe.delivery.report(error)
            del stripe  # a thread that waits must not keep the caller's buffer


class ReceivingLane(Lane):
    """D's end: puts what comes into the zones, until it fails."""

    def __init__(self, pipe: Pipe, zones: LandingZones, changed: Callable[["ReceivingLane"], None]) -> None:
        """`changed` is called in the lane's thread when `landed` has grown or `failure` is set."""
        super().__init__(pipe)
        self._zones = zones
        self._changed = changed
        self.landed = 0
        """Stripes whole in their zones."""
        self.failure: TransferError | None = None

    @property
    def heard(self) -> int:
        """Bytes received."""
        return self._pipe.heard

    def _work(self) -> None:
        header = memoryview(bytearray(HEADER_BYTES))
        failure: TransferError = PeerLost("the thread of a data connection failed")
        try:
            while True:
                self._pipe.fill(header)
                self._receive_stripe(bytes(header))
                self.landed += 1
                self._changed(self)
        except TransferError as error:
            failure = _bare(error)
        finally:
            self.failure = failure
            self._changed(self)

    def _receive_stripe(self, data: bytes) -> None:
        header = decode_header(data)
        if header.kind is not FrameKind.SEGMENT:
            raise Corrupt(f"a data connection carries SEGMENT frames only, not {header.kind.name}")
        with self._zones.lent(header) as target:
            self._pipe.fill(target)


E = TypeVar("E", bound=TransferError)


def _bare(error: E) -> E:
    """Without tracebacks, whose frames would keep the caller's memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


async def send_striped(lanes: Sequence[SendingLane], zone: int, data: memoryview, offset: int) -> None:
    """Send `data`, which goes to `zone` from byte number `offset` on, in one stripe by each lane; raises PeerLost.

    However it ends, no lane needs the data any more. When it fails or is cancelled, all lanes are shut.
    """
    delivery = _Delivery(lanes)
    cuts = [len(data) * number // len(lanes) for number in range(len(lanes) + 1)]
    for lane, (start, stop) in zip(lanes, pairwise(cuts), strict=True):
        header = encode_segment_header(zone, stop - start, offset + start)
        lane.send(_Stripe(header, data[start:stop], delivery))
    try:
        await asyncio.shield(delivery.done)
    except asyncio.CancelledError:
        delivery.give_up()
        await settle([delivery.done])
        raise
    finally:
        if delivery.done.done():
            delivery.done.exception()


def start_all(lanes: Sequence[Lane]) -> None:
    """Start their threads, or none is left and every connection is closed: raises PeerLost."""
    try:
        for lane in lanes:
            lane.start()
    except (RuntimeError, MemoryError) as error:
        for lane in lanes:
            lane.stop()
        for lane in lanes:
            lane.release()  # at once: no lane that has begun has anything to do yet
        raise PeerLost(f"no thread for a data connection: {error}") from error


async def end_all(lanes: Sequence[Lane]) -> None:
    """End their threads and connections, also when cancelled meanwhile. Idempotent."""
    for lane in lanes:
        lane.stop()
    try:
        await settle([lane.left for lane in lanes])
    finally:
        for lane in lanes:
            lane.release()


def post(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call back on the event loop, unless that is gone: then nobody waits any more either."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        pass
