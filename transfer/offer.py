"""One request's KV, held at P for the bearer of a ticket."""

import asyncio
from collections.abc import Callable, Sequence

from common.kv.intervals import Interval
from common.kv.ownership import Ended, Event, Expired, Handoff, OfferEnd, Phase, Withdrawn, step
from common.kv.ticket import Ticket
from transfer.waiting import Wakeup


class Offer:
    """Made by KVSource.offer. The blocks are lent to the transfer layer until `ended` returns."""

    def __init__(
        self,
        ticket: Ticket,
        blocks: Sequence[int],
        num_tokens: int,
        layers: Interval,
        deadline_s: float,
        on_release: Callable[["Offer"], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ticket = ticket
        self.blocks = tuple(blocks)
        self.num_tokens = num_tokens
        self.ready = [0] * len(layers)
        """For each layer, the tokens [0, n) that are computed."""
        self.changed = Wakeup()
        """Layers became ready, credit came, or the offer ended."""
        self.layers = layers
        self._on_release = on_release
        self._handoff = Handoff()
        self._released: asyncio.Future[OfferEnd] = loop.create_future()
        self._timer = loop.call_later(deadline_s, self.apply, Ended(Expired()))

    @property
    def is_taken(self) -> bool:
        """Whether a taker has been accepted."""
        return self._handoff.phase is not Phase.OFFERED

    @property
    def may_be_read(self) -> bool:
        """Whether a session may begin to read the blocks now."""
        return self._handoff.may_read

    def layer_ready(self, layer: int, token_stop: int) -> None:
        """The KV of tokens [0, token_stop) of `layer` (numbered as in the layout) is in the blocks.

        Call it on the event loop, in any order; fewer tokens than said before change nothing. After the offer has
        ended it has no effect.
        """
        if layer not in self.layers or not 0 <= token_stop <= self.num_tokens:
            raise ValueError(
                f"layer {layer!r} with tokens [0, {token_stop!r}) is ready; the offer of transfer "
                f"{self.ticket.transfer!r} has layers {self.layers!r} and {self.num_tokens} tokens"
            )
        index = layer - self.layers.start
        self.ready[index] = max(self.ready[index], token_stop)
        self.changed.wake()

    def withdraw(self, reason: str) -> None:
        """End the offer; a taker is told `reason`. No effect once it has ended."""
        self.apply(Ended(Withdrawn(reason)))

    async def ended(self) -> OfferEnd:
        """How the offer ended. When this returns nothing reads the blocks any more. May be awaited by several."""
        return await asyncio.shield(self._released)

    async def over(self) -> OfferEnd:
        """How the offer ended, as soon as it is decided: the blocks may still be read for a moment."""
        while self._handoff.end is None:
            await self.changed.wait()
        return self._handoff.end

    def apply(self, event: Event) -> None:
        """Step the ownership machine and do what it says. For the source and its sessions only."""
        self._handoff, release = step(self._handoff, event)
        if release is not None:
            self._timer.cancel()
            self._released.set_result(release.end)
            self._on_release(self)
        self.changed.wake()
