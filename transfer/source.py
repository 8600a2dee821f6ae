"""P's side: offers, and the takers that come for them."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

from common.clock import Clock
from common.ids import Generation, TransferId
from common.kv.ownership import Acknowledged, Ended, TakerAccepted, TakerFailed, Withdrawn
from common.kv.ticket import Ticket
from common.logs import LimitedLog
from transfer.backends.base import Backend, Link, Listener
from transfer.channel import Channel
from transfer.errors import (
    Aborted,
    Corrupt,
    PeerLost,
    RefusalReason,
    Refused,
    Stopped,
    TimedOut,
    TransferError,
    brief,
)
from transfer.limits import TransferHoldings, TransferLimits
from transfer.memory import PagedMemory
from transfer.offer import Offer
from transfer.probe import ProbeServer
from transfer.protocol.admission import OfferView, Park, SourceView, judge
from transfer.protocol.messages import (
    Abort,
    Alive,
    Open,
    Probe,
    Refusal,
    ToSink,
    ToSource,
    sink_codec,
    source_codec,
)
from transfer.protocol.negotiation import Agreement
from transfer.source_session import GivingSession
from transfer.waiting import Wakeup, race
from transfer.workshop import Tally, Workshop, capabilities_of

_log = logging.getLogger(__name__)

_Channel = Channel[ToSource, ToSink]


class KVSource:
    """Gives KV from `memory` to the bearers of tickets. Belongs to one event loop.

    A taker that comes before its offer is parked, within the bounds of `limits`. Whatever a peer sends, only its own
    hand-off is ended by it. `close` ends everything; offers still open end as Withdrawn.
    """

    def __init__(
        self,
        memory: PagedMemory,
        generation: Generation,
        limits: TransferLimits,
        clock: Clock,
        backends: Sequence[Backend],
    ) -> None:
        self._generation = generation
        self._limits = limits
        self._clock = clock
        self._backends = tuple(backends)
        self._workshop = Workshop("kv-source", memory, limits, clock, backends)
        self._probes = ProbeServer(backends, limits.segment_bytes, self._workshop.tasks)
        self._capabilities = capabilities_of(memory.layout, limits)
        self._listeners: list[Listener] = []
        self._offers: dict[TransferId, Offer] = {}
        self._ended: OrderedDict[TransferId, None] = OrderedDict()
        self._parked = 0
        self._is_closed = False
        self._offered = Wakeup()
        self._tallies = {backend.scheme: Tally() for backend in backends}
        # One for each: a flood of one kind must not hide another.
        self._crowds, self._refusals, self._breaks = (LimitedLog(_log, clock) for _ in range(3))
        self.takers_refused = 0
        self.connections_broken = 0
        """Connections that ended by damage, loss or silence of the peer."""

    async def start(self) -> tuple[str, ...]:
        """Listen with every backend; the endpoints to put into tickets. Raises OSError when a host cannot be used."""
        for backend in self._backends:
            self._listeners.append(await backend.listen(partial(self._accept, backend.scheme)))
        return tuple(listener.endpoint for listener in self._listeners)

    def offer(self, ticket: Ticket, blocks: Sequence[int], num_tokens: int, deadline_s: float) -> Offer:
        """Hold tokens [0, num_tokens) in `blocks` for the bearer of `ticket`, for at most `deadline_s`.

        Raises Stopped when this source is closed, Refused for a ticket of another generation or one that was offered
        before, and ValueError for blocks that cannot hold the tokens.
        """
        layout = self._workshop.memory.layout
        used = self._workshop.memory.check_blocks(blocks, num_tokens)
        self._check_fresh(ticket)
        offer = Offer(ticket, used, num_tokens, layout.layers, deadline_s, self._release)
        self._offers[ticket.transfer] = offer
        self._offered.wake()
        return offer

    def refuse_all(self, generation: Generation) -> None:
        """This instance has joined anew: withdraw every offer, refuse every parked taker and every older ticket."""
        self._generation = generation
        for offer in list(self._offers.values()):
            offer.withdraw("the source has joined under a new generation")
        self._offered.wake()

    @property
    def payload_bytes_sent(self) -> int:
        """Bytes of KV handed to the transports since start."""
        return sum(tally.payload_bytes for tally in self._tallies.values())

    @property
    def clamped_elements(self) -> int:
        """Elements set to the largest value of a narrower type since start."""
        return sum(tally.clamped_elements for tally in self._tallies.values())

    def tallies(self) -> Mapping[str, Tally]:
        """What went out by each backend's scheme."""
        return self._tallies

    def holdings(self) -> TransferHoldings:
        """What is held now; all zero when idle."""
        return self._workshop.holdings(offers=len(self._offers), parked=self._parked)

    async def close(self) -> None:
        """Accept and offer no more, withdraw every offer, end every task, connection and thread. Idempotent."""
        self._is_closed = True
        while self._listeners:
            await self._listeners.pop().close()
        for offer in list(self._offers.values()):
            offer.withdraw("the source is closing")
        await self._workshop.close()
        self._probes.close()

    def _check_fresh(self, ticket: Ticket) -> None:
        if self._is_closed:
            raise Stopped("this source is closed")
        if ticket.prefill_generation != self._generation:
            raise Refused(
                RefusalReason.GENERATION,
                f"the ticket is of generation {ticket.prefill_generation!r}; this source is of {self._generation!r}",
                "prefill_generation",
            )
        if ticket.transfer in self._offers or ticket.transfer in self._ended:
            raise Refused(
                RefusalReason.ALREADY_TAKEN,
                f"transfer {ticket.transfer!r} was offered before; mint a new ticket",
                "transfer",
            )

    def _release(self, offer: Offer) -> None:
        del self._offers[offer.ticket.transfer]
        self._ended[offer.ticket.transfer] = None
        if len(self._ended) > self._limits.max_remembered:
            self._ended.popitem(last=False)

    # ------------------------------------------------------------ connections

    def _accept(self, scheme: str, link: Link) -> None:
        has_room = len(self._workshop.links) < self._limits.max_connections
        self._workshop.links.add(link)
        self._workshop.tasks.start(self._serve(scheme, link) if has_room else self._turn_away(link), "taker")

    async def _turn_away(self, link: Link) -> None:
        self._crowds.warning("a connection was closed: %d are open, the limit", self._limits.max_connections)
        self.takers_refused += 1
        await self._drop(link)

    async def _drop(self, link: Link) -> None:
        await link.close()
        self._workshop.links.discard(link)

    async def _serve(self, scheme: str, link: Link) -> None:
        channel: _Channel = Channel(
            link,
            source_codec(),
            sink_codec(),
            Alive(),
            self._workshop.tasks,
            self._limits.progress_timeout_s,
        )
        try:
            last = await self._converse(scheme, channel)
            if last is not None:
                await channel.part(last)
        finally:
            try:
                await channel.close()
            finally:
                self._workshop.links.discard(link)

    async def _converse(self, scheme: str, channel: _Channel) -> ToSink | None:
        """Serve one connection; what to tell the peer before it is closed."""
        try:
            request = await self._opening(channel)
            if isinstance(request, Probe):
                await self._probes.serve(scheme, channel, request)
                return None
            admitted = await self._admit(channel, request)
        except TransferError as error:
            return self._broken(error)
        match admitted:
            case Refusal():
                self.takers_refused += 1
                self._refusals.warning("a taker of %s is refused: %s", brief(request.ticket.transfer), admitted.message)
                return admitted
            case (Agreement() as agreement, Offer() as offer):
                return await self._give(scheme, channel, request, agreement, offer)

    async def _opening(self, channel: _Channel) -> Open | Probe:
        try:
            async with asyncio.timeout(self._limits.progress_timeout_s):
                request = await channel.next()
        except TimeoutError:
            raise TimedOut(f"no Open came within {self._limits.progress_timeout_s} s of connecting") from None
        if not isinstance(request, Open | Probe):
            raise Corrupt(f"a connection begins with Open or Probe, not with {brief(request)}")
        return request

    async def _give(
        self, scheme: str, channel: _Channel, request: Open, agreement: Agreement, offer: Offer
    ) -> ToSink | None:
        offer.apply(TakerAccepted())
        staging, tally = self._workshop.staging[scheme], self._tallies[scheme]
        session = GivingSession(channel, offer, request, agreement, self._workshop, staging, tally)
        try:
            await session.run(self._capabilities)
        except Stopped as stopped:
            return Abort(str(stopped))
        except TransferError as error:
            offer.apply(Ended(TakerFailed(str(error))))
            return self._broken(error)
        except BaseException as error:
            offer.apply(Ended(Withdrawn(f"the source failed: {error!r}")))
            raise
        moved = offer.num_tokens - request.first_token
        offer.apply(Ended(Acknowledged(agreement.plan.payload_bytes(moved))))
        return None

    def _broken(self, error: TransferError) -> Abort | None:
        """Count and log; what to tell the peer, unless it is gone or waits for nothing but the close."""
        self.connections_broken += 1
        self._breaks.warning("a hand-off ended: %s: %s", type(error).__name__, error)
        return None if isinstance(error, Aborted | PeerLost) else Abort(str(error))

    # ------------------------------------------------------------ admission

    async def _admit(self, channel: _Channel, request: Open) -> Refusal | tuple[Agreement, Offer]:
        until = self._clock.now() + min(request.patience_s, self._limits.max_parked_s)
        is_patient = True
        while True:
            match verdict := judge(request, self._view(request.ticket.transfer, is_patient=is_patient)):
                case Refusal():
                    return verdict
                case Agreement():
                    return verdict, self._offers[request.ticket.transfer]
                case Park():
                    is_patient = await self._park(channel, until - self._clock.now())

    def _view(self, transfer: TransferId, *, is_patient: bool) -> SourceView:
        offer = self._offers.get(transfer)
        return SourceView(
            generation=self._generation,
            capabilities=self._capabilities,
            offer=None if offer is None else OfferView(offer.ticket, offer.num_tokens, offer.is_taken),
            has_ended=transfer in self._ended,
            may_park=is_patient and self._parked < self._limits.max_parked,
        )

    async def _park(self, channel: _Channel, patience_s: float) -> bool:
        """Wait until an offer has come or the generation has changed; False when patience is at an end."""
        seen = self._offered.count
        self._parked += 1
        try:
            async with asyncio.timeout(patience_s):
                await race(
                    self._workshop.tasks,
                    "park",
                    lambda: self._offered.wait_beyond(seen),
                    lambda: _until_lost(channel),
                )
        except TimeoutError:
            return False
        finally:
            self._parked -= 1
        return True


async def _until_lost(channel: _Channel) -> None:
    raise Corrupt(f"a parked taker has nothing to say but Alive; it said {brief(await channel.next())}")
