"""A link that speaks messages: decodes them, keeps alive, and notices a peer that is gone, silent or senseless."""

import asyncio
import logging
from typing import Generic, TypeVar

from common.errors import MalformedMessage
from common.messages.codec import Codec
from common.tasks import TaskScope
from transfer.backends.base import Link
from transfer.errors import Corrupt, TimedOut, TransferError
from transfer.protocol.messages import Alive
from transfer.waiting import settle

_log = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

_INBOX = 64
_TICKS = 4
"""Signs of life sent, and looks taken, per progress timeout."""


class Channel(Generic[In, Out]):
    """Owns the link. `stop`, `part` and `close` may be called in that order or alone; one of the last two must be.

    Silence is counted in looks of this event loop, not in time, so that a stall of this process (its own stop and
    continuation, say) is not taken for the peer's.
    """

    def __init__(
        self,
        link: Link,
        hears: Codec[In],
        says: Codec[Out],
        alive: Out,
        tasks: TaskScope,
        progress_timeout_s: float,
    ) -> None:
        self.link = link
        self._hears = hears
        self._says = says
        self._alive = alive
        self._progress_timeout_s = progress_timeout_s
        self._inbox: asyncio.Queue[In | TransferError] = asyncio.Queue(_INBOX)
        self._loops = [
            tasks.start(self._read(), "read"),
            tasks.start(self._pulse(), "pulse"),
            tasks.start(self._watch(), "watch"),
        ]

    async def next(self) -> In:
        """The next message that is not Alive; raises the TransferError that ended the channel, once."""
        item = await self._inbox.get()
        if isinstance(item, TransferError):
            raise item
        return item

    async def send(self, message: Out) -> None:
        """Say `message`; raises PeerLost."""
        await self.link.send(self._says.encode(message))

    async def stop(self) -> None:
        """End the reading and the signs of life. The link stays open, and writes to no zone unless received from."""
        for loop in self._loops:
            loop.cancel()
        await settle(self._loops)

    async def part(self, last: Out) -> None:
        """Stop, say `last`, let the peer close first so that it can read it (for a bounded time), and close."""
        await self.stop()
        try:
            async with asyncio.timeout(self._progress_timeout_s):
                await self.send(last)
                while True:
                    await self.link.receive()
        except (TransferError, TimeoutError):
            pass
        finally:
            await self.link.close()

    async def close(self) -> None:
        """Stop, and close the link. Idempotent."""
        try:
            await self.stop()
        finally:
            await self.link.close()

    async def _read(self) -> None:
        try:
            while True:
                message = self._hears.decode(await self.link.receive())
                if not isinstance(message, Alive):
                    await self._inbox.put(message)
        except TransferError as error:
            await self._inbox.put(error)
        except MalformedMessage as error:
            await self._inbox.put(Corrupt(str(error)))
        except Exception as error:
            # A fault of ours that a peer has found. Whoever waits for the next message must hear of it all the same.
            _log.exception("what a peer sent could not be read")
            await self._inbox.put(Corrupt(f"what came could not be read: {error!r}"))

    async def _pulse(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._progress_timeout_s / _TICKS)
                await self.send(self._alive)
        except TransferError:
            # What broke the sending ends the reading too, and there it comes after the messages already received.
            return

    async def _watch(self) -> None:
        heard, silent = self.link.bytes_heard, 0
        while silent < _TICKS:
            await asyncio.sleep(self._progress_timeout_s / _TICKS)
            silent = silent + 1 if self.link.bytes_heard == heard else 0
            heard = self.link.bytes_heard
        await self._inbox.put(TimedOut(f"the peer has shown no sign of life for {self._progress_timeout_s} s"))
