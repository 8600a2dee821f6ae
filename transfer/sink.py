"""D's side: takes over KV by ticket."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest

from common.clock import Clock
from common.ids import Generation
from common.kv.intervals import Interval
from common.kv.ticket import Ticket
from transfer.backends.base import Backend, Link
from transfer.channel import Channel
from transfer.errors import (
    Aborted,
    PeerLost,
    RefusalReason,
    Refused,
    Stopped,
    TimedOut,
    TransferError,
    Unreachable,
    brief,
    shortened,
)
from transfer.limits import TransferHoldings, TransferLimits
from transfer.memory import PagedMemory
from transfer.paths import Path, fastest_first, paths_to
from transfer.plan import Region, region_of
from transfer.probe import MEASURE_S, Acquaintance, LinkFigures, measure
from transfer.protocol.messages import Abort, Alive, AllLanded, ToSink, ToSource, sink_codec, source_codec
from transfer.sink_session import Landed, TakeRequest, TakingSession
from transfer.waiting import Wakeup, race
from transfer.workshop import Tally, Workshop

_log = logging.getLogger(__name__)

_MAX_FIGURES = 256


class KVSink:
    """Takes KV into `memory`. Belongs to one event loop; any number of takes may run, each with blocks of its own."""

    def __init__(
        self,
        memory: PagedMemory,
        generation: Generation,
        limits: TransferLimits,
        clock: Clock,
        backends: Sequence[Backend],
    ) -> None:
        if memory.layout.token_bytes_per_layer > limits.segment_bytes:
            raise ValueError(
                f"segment_bytes {limits.segment_bytes!r} cannot hold one token of one layer "
                f"({memory.layout.token_bytes_per_layer} bytes): raise it"
            )
        self._generation = generation
        self._limits = limits
        self._backends = {backend.scheme: backend for backend in backends}
        self._workshop = Workshop("kv-sink", memory, limits, clock, backends)
        self._is_closed = False
        self._takes = 0
        self._changed = Wakeup()
        self._tallies = {backend.scheme: Tally() for backend in backends}
        self._figures: dict[str, LinkFigures] = {}
        self.fallbacks = 0
        """Times that the best path to a source could not be used and a slower one was."""

    @property
    def payload_bytes_received(self) -> int:
        """Bytes of KV unpacked since start, as they were on the wire."""
        return sum(tally.payload_bytes for tally in self._tallies.values())

    @property
    def clamped_elements(self) -> int:
        """Elements set to the largest value of a narrower type since start."""
        return sum(tally.clamped_elements for tally in self._tallies.values())

    def tallies(self) -> Mapping[str, Tally]:
        """What came in by each backend's scheme."""
        return self._tallies

    async def take(
        self,
        ticket: Ticket,
        blocks: Sequence[int],
        num_tokens: int,
        deadline_s: float,
        region: Region | None = None,
        first_token: int = 0,
    ) -> Landed:
        """Fill `blocks` with the KV of tokens [first_token, num_tokens), at least one; other blocks are left alone.

        `region` is the part of this rank's layers and heads that the source holds, where it does not hold all (None).
        `first_token` begins a block: those before it are held already, and others may use them.
        Raises Refused, PeerLost, TimedOut, Corrupt, Aborted or Stopped, and ValueError for blocks that cannot hold
        the tokens. Cancel-safe. However it ends, nothing writes the blocks afterwards; unless it returned, what is
        in them means nothing.
        """
        used = self._workshop.memory.check_blocks(blocks, num_tokens)
        tokens = self._tokens(first_token, num_tokens)
        self._check_generation(ticket)
        request = TakeRequest(ticket, region or region_of(self._workshop.memory.layout), used, tokens)
        self._takes += 1
        try:
            async with asyncio.timeout(deadline_s):
                return await race(
                    self._workshop.tasks,
                    f"take {ticket.transfer}",
                    partial(self._take, request, deadline_s),
                    partial(self._until_fenced, ticket),
                )
        except TimeoutError:
            raise TimedOut(f"transfer {ticket.transfer!r} did not land within {deadline_s} s") from None
        finally:
            self._takes -= 1
            self._changed.wake()

    def rejoin(self, generation: Generation) -> None:
        """This instance has joined anew: takes under way end as Stopped, older tickets are refused."""
        self._generation = generation
        self._changed.wake()

    def holdings(self) -> TransferHoldings:
        """What is held now; all zero when idle."""
        return self._workshop.holdings(offers=self._takes, parked=0)

    async def close(self) -> None:
        """End every take as Stopped, then every task, connection and thread. Idempotent."""
        self._is_closed = True
        self._changed.wake()
        while self._takes:
            await self._changed.wait()
        await self._workshop.close()

    def _tokens(self, first: int, stop: int) -> Interval:
        if not 0 <= first < stop or first % self._workshop.memory.layout.block_size:
            raise ValueError(f"tokens [{first!r}, {stop!r}) do not begin a block, or are none")
        return Interval(first, stop)

    def _check_generation(self, ticket: Ticket) -> None:
        if self._is_closed:
            raise Stopped("this sink is closed")
        if ticket.decode_generation != self._generation:
            raise Refused(
                RefusalReason.GENERATION,
                f"the ticket is of generation {ticket.decode_generation!r}; this sink is of {self._generation!r}",
                "decode_generation",
            )

    async def _until_fenced(self, ticket: Ticket) -> Landed:
        while ticket.decode_generation == self._generation and not self._is_closed:
            await self._changed.wait()
        raise Stopped(f"transfer {ticket.transfer!r} was given up: this sink is closing or has joined anew")

    async def _take(self, request: TakeRequest, deadline_s: float) -> Landed:
        paths = self._paths(request.ticket.endpoints)
        for path, spare in zip_longest(paths, paths[1:]):
            try:
                return await self._take_by(path, request, deadline_s)
            except Unreachable as error:
                if spare is None:
                    raise
                self.fallbacks += 1
                _log.warning("%s; falling back to %s", error, spare.endpoint)
        raise AssertionError("there is at least one path")

    def _paths(self, endpoints: tuple[str, ...]) -> tuple[Path, ...]:
        """Best first, at least one."""
        paths = fastest_first(paths_to(endpoints, tuple(self._backends.values())), self._figures)
        if not paths:
            raise PeerLost(
                f"none of the source's endpoints {endpoints!r} can be reached by a backend of this sink, "
                f"{sorted(self._backends)!r}: configure one backend that both have"
            )
        return paths

    async def _take_by(self, path: Path, request: TakeRequest, deadline_s: float) -> Landed:
        backend = self._backends[path.scheme]
        layout = self._workshop.memory.layout
        most = len(request.tokens) * layout.token_bytes  # on the wire they are never wider than at home
        async with self._workshop.staging[path.scheme].lend(self._limits.zones_for(most)) as loan:
            channel = self._channel(await self._connect(backend, path.endpoint))
            session = TakingSession(
                channel, request, loan.buffers, self._workshop, path.scheme, self._tallies[path.scheme]
            )
            last: ToSource | None = Abort("cancelled")
            loan.is_spoiled = backend.traits.remote_writes
            try:
                landed = await session.run(deadline_s)
                last = AllLanded()
                loan.is_spoiled = False
            except (Refused, Aborted, PeerLost):
                last = None
                raise
            except Exception as error:
                last = Abort(shortened(f"{type(error).__name__}: {error}"))
                raise
            finally:
                await self._retire(channel, last)
            return landed

    # ------------------------------------------------------------ self-test

    async def meet(self, endpoints: tuple[str, ...]) -> Acquaintance:
        """Measure every path to the source at `endpoints`; what it finds decides which one later takes use.

        Paths that fail are logged, counted as fallbacks and left out; raises PeerLost when all do, and Stopped when
        this sink closes.
        """
        failed: list[str] = []
        self._takes += 1
        try:
            for path in self._paths(endpoints):
                try:
                    self._remember(path.endpoint, await self._measured(path))
                except Stopped:
                    raise
                except TransferError as error:
                    failed.append(f"{path.endpoint}: {error}")
                    _log.warning("the self-test of %s failed: %s", path.endpoint, error)
        finally:
            self._takes -= 1
            self._changed.wake()
        found = [self._figures[path.endpoint] for path in self._paths(endpoints) if path.endpoint in self._figures]
        if not found:
            raise PeerLost(f"no self-test of {endpoints!r} succeeded: {'; '.join(failed)}")
        self.fallbacks += len(failed)
        return Acquaintance(tuple(found), tuple(failed))

    async def _measured(self, path: Path) -> LinkFigures:
        try:
            async with asyncio.timeout(MEASURE_S):
                return await race(self._workshop.tasks, "measure", partial(self._measure, path), self._until_closed)
        except TimeoutError:
            raise TimedOut(f"it took longer than {MEASURE_S} s") from None

    async def _until_closed(self) -> LinkFigures:
        while not self._is_closed:
            await self._changed.wait()
        raise Stopped("this sink is closed")

    def _remember(self, endpoint: str, figures: LinkFigures) -> None:
        """Sources that restart have new endpoints; the oldest are forgotten."""
        self._figures.pop(endpoint, None)
        self._figures[endpoint] = figures
        while len(self._figures) > _MAX_FIGURES:
            del self._figures[next(iter(self._figures))]

    async def _measure(self, path: Path) -> LinkFigures:
        backend, limits = self._backends[path.scheme], self._limits
        async with self._workshop.staging[path.scheme].lend(limits.landing_zones) as loan:
            channel = self._channel(await self._connect(backend, path.endpoint))
            last: ToSource | None = None
            loan.is_spoiled = backend.traits.remote_writes
            try:
                found = await measure(path.scheme, channel, loan.buffers, limits.segment_bytes, self._workshop.clock)
                last = AllLanded()
                loan.is_spoiled = False
            finally:
                await self._retire(channel, last)
        return found

    # ------------------------------------------------------------ connections

    async def _retire(self, channel: Channel[ToSink, ToSource], last: ToSource | None) -> None:
        """Take the zones back at once; in the background say `last` and wait for the source's close, or just close."""
        try:
            await channel.stop()
        finally:
            channel.link.register(())
            self._workshop.tasks.start(self._part(channel, last), "part")

    async def _part(self, channel: Channel[ToSink, ToSource], last: ToSource | None) -> None:
        try:
            await (channel.close() if last is None else channel.part(last))
        finally:
            self._workshop.links.discard(channel.link)

    async def _connect(self, backend: Backend, endpoint: str) -> Link:
        try:
            async with asyncio.timeout(self._limits.progress_timeout_s):
                link = await backend.connect(endpoint)
        except PeerLost as error:
            raise Unreachable(str(error)) from error
        except (ValueError, OverflowError) as error:
            # What another source calls its endpoint; the next one may be in order.
            raise Unreachable(f"{brief(endpoint)} cannot be connected to: {error}") from error
        except TimeoutError:
            raise Unreachable(f"{endpoint!r} did not answer within {self._limits.progress_timeout_s} s") from None
        self._workshop.links.add(link)
        return link

    def _channel(self, link: Link) -> Channel[ToSink, ToSource]:
        return Channel(
            link,
            sink_codec(),
            source_codec(),
            Alive(),
            self._workshop.tasks,
            self._limits.progress_timeout_s,
        )
