"""D's side: takes over KV by ticket."""

import asyncio
from collections.abc import Sequence
from functools import partial

from common.clock import Clock
from common.ids import Generation
from common.kv.ticket import Ticket
from transfer.backends.base import Backend, Link
from transfer.channel import Channel
from transfer.errors import Aborted, PeerLost, RefusalReason, Refused, Stopped, TimedOut
from transfer.limits import TransferHoldings, TransferLimits
from transfer.memory import PagedMemory
from transfer.protocol.messages import Abort, Alive, AllLanded, ToSink, ToSource, sink_codec, source_codec
from transfer.sink_session import Landed, TakingSession
from transfer.waiting import Wakeup, race
from transfer.workshop import Workshop


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
        self._workshop = Workshop("kv-sink", memory, limits, clock)
        self._is_closed = False
        self._takes = 0
        self._changed = Wakeup()
        self.payload_bytes_received = 0
        """Bytes of KV unpacked since start."""

    async def take(self, ticket: Ticket, blocks: Sequence[int], num_tokens: int, deadline_s: float) -> Landed:
        """Fill `blocks` with the KV of tokens [0, num_tokens); later blocks are left alone.

        Raises Refused, PeerLost, TimedOut, Corrupt, Aborted or Stopped, and ValueError for blocks that cannot hold
        the tokens. Cancel-safe. However it ends, nothing writes the blocks afterwards; unless it returned, what is
        in them means nothing.
        """
        used = self._workshop.memory.check_blocks(blocks, num_tokens)
        self._check_generation(ticket)
        self._takes += 1
        try:
            async with asyncio.timeout(deadline_s):
                return await race(
                    self._workshop.tasks,
                    f"take {ticket.transfer}",
                    partial(self._take, ticket, used, num_tokens, deadline_s),
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

    async def _take(self, ticket: Ticket, blocks: Sequence[int], num_tokens: int, deadline_s: float) -> Landed:
        async with self._workshop.staging.lend(self._limits.landing_zones) as zones:
            link = await self._dial(ticket)
            channel = self._channel(link)
            session = TakingSession(channel, ticket, blocks, num_tokens, zones, self._workshop, self._count_received)
            last: ToSource | None = Abort("cancelled")
            try:
                landed = await session.run(deadline_s)
                last = AllLanded()
            except (Refused, Aborted, PeerLost):
                last = None
                raise
            except Exception as error:
                last = Abort(f"{type(error).__name__}: {error}")
                raise
            finally:
                await self._retire(channel, last)
            return landed

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

    async def _dial(self, ticket: Ticket) -> Link:
        for endpoint in ticket.endpoints:
            backend = self._backends.get(endpoint.partition("://")[0])
            if backend is None:
                continue
            try:
                async with asyncio.timeout(self._limits.progress_timeout_s):
                    link = await backend.connect(endpoint)
            except TimeoutError:
                raise TimedOut(f"{endpoint!r} did not answer within {self._limits.progress_timeout_s} s") from None
            self._workshop.links.add(link)
            return link
        raise PeerLost(
            f"none of the source's endpoints {ticket.endpoints!r} is of a backend of this sink, "
            f"{sorted(self._backends)!r}: configure one backend that both have"
        )

    def _channel(self, link: Link) -> Channel[ToSink, ToSource]:
        return Channel(
            link,
            sink_codec(),
            source_codec(),
            Alive(),
            self._workshop.tasks,
            self._limits.progress_timeout_s,
        )

    def _count_received(self, payload_bytes: int) -> None:
        self.payload_bytes_received += payload_bytes
