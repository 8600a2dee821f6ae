"""The worker's side of membership: performs what `common.bus.membership` decides over a real connection."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, assert_never

from common.bus import membership
from common.bus.client import BusClient, Disconnected, Refused
from common.clock import Clock
from common.errors import PdmeshError
from common.ids import Generation
from common.kv.prefix import PrefixNews
from common.logs import LimitedLog
from common.messages.control import FromWorker, Heartbeat, Leaving, Load, Register, ToWorker

_log = logging.getLogger(__name__)

_ATTEMPTS_IN_SILENCE: Final = 7
"""Attempts to join that nobody answered, 2.5 s of them, after which the log says so; once in each life."""


class MembershipRejected(PdmeshError):
    """The gateway will never take this instance (another model, a wire version not spoken): the process should end."""


class Registration:
    """What the worker supplies to be a member; every callable is called on the event loop.

    `draw_generation` draws the number of a new life; `register` builds the Register of that life; `load` and
    `prefixes` are asked at every heartbeat; `on_message` gets RunPrefill, RunDecode, Abort and Drain, and must not
    block; `on_lost` ends when every job is dropped, and only then does the worker join anew.
    """

    def __init__(
        self,
        *,
        draw_generation: Callable[[], Generation],
        register: Callable[[Generation], Register],
        load: Callable[[], Load],
        on_message: Callable[[ToWorker], None],
        on_lost: Callable[[str], Awaitable[None]],
        prefixes: Callable[[], PrefixNews | None] = lambda: None,
    ) -> None:
        self.draw_generation = draw_generation
        self.register = register
        self.load = load
        self.on_message = on_message
        self.on_lost = on_lost
        self.prefixes = prefixes


class MembershipClient:
    """Joins the mesh, stays in it, and joins anew when it was lost.

    `connect` makes a client that has not been started; each life of the membership has a connection of its own, so
    nothing said to an earlier life is taken for this one.  Use: run `run()` in a task; at shutdown await `leave()`
    first, then the task, which then returns.
    """

    def __init__(
        self, connect: Callable[[], BusClient[ToWorker, FromWorker]], registration: Registration, clock: Clock
    ) -> None:
        self._connect = connect
        self._registration = registration
        self._clock = clock
        self._refusals = LimitedLog(_log, clock, interval_s=30.0)
        self._state: membership.State = membership.start(clock.now())
        self._client: BusClient[ToWorker, FromWorker] | None = None
        self._me: Register | None = None
        self._send_failed = False
        self._leaving = False

    @property
    def is_joined(self) -> bool:
        """Whether the gateway counts this instance as a member, as far as we know."""
        return isinstance(self._state, membership.Joined)

    @property
    def generation(self) -> Generation | None:
        """The life this instance registers as; None before `run` has drawn one."""
        return self._me.generation if self._me is not None else None

    def send(self, message: FromWorker) -> bool:
        """Send to the gateway without waiting.

        False when this is not a member or the connection cannot take it: nothing more is sent in this life, and the
        membership is given up within a heartbeat (`on_lost`), so a hole in the stream cannot go unnoticed.
        """
        if self._client is None or self._send_failed or not self.is_joined:
            return False
        self._send_failed = not self._client.send(message)
        return not self._send_failed

    async def run(self) -> None:
        """Be a member until `leave`. Raises MembershipRejected when the gateway refuses for good."""
        self._renew()
        try:
            while not self._leaving:
                client = self._client or await self._reconnect()
                await self._perform(membership.ticked(self._state, self._clock.now()))
                if self._client is client:
                    await self._listen(client)
        finally:
            await self._close()

    async def leave(self) -> None:
        """Tell the gateway that this instance stops; `run` returns within a heartbeat. Idempotent.

        Cancelling the task of `run` after this ends it at once, and the message still leaves.
        """
        if not self._leaving and self._me is not None:
            self.send(Leaving(self._me.instance, self._me.generation))
        self._leaving = True

    def _pause_s(self) -> float | None:
        wake_at_s = membership.wake_at_s(self._state)
        return None if wake_at_s is None else max(0.0, wake_at_s - self._clock.now())

    async def _listen(self, client: BusClient[ToWorker, FromWorker]) -> None:
        for message in await client.receive_many(self._pause_s()):
            await self._take(message)
            if self._client is not client:
                return  # the rest was said to a life that is over
        if self._send_failed:
            await self._perform(membership.lost(self._state, self._clock.now(), "a message could not be sent"))

    async def _take(self, message: ToWorker | Disconnected | Refused) -> None:
        now_s = self._clock.now()
        match message:
            case Disconnected():
                await self._perform(membership.lost(self._state, now_s, "the connection to the gateway broke"))
            case Refused(reason=reason):
                await self._try_again_later(reason)
            case _:
                await self._perform(membership.received(self._state, message, now_s))

    async def _try_again_later(self, reason: str) -> None:
        """With another client, which reads its keys anew."""
        self._refusals.warning("not in the mesh: %s; the attempts to join go on", reason)
        await self._perform(membership.lost(self._state, self._clock.now(), reason))
        await self._close()
        await asyncio.sleep(membership.LAST_RETRY_S)

    async def _perform(self, decision: membership.Decision) -> None:
        was_joined = self.is_joined
        self._state, effects = decision
        if self.is_joined and not was_joined:
            _log.info("joined the mesh with generation %s", self.generation)
        for effect in effects:
            match effect:
                case membership.SendRegister():
                    self._send_register()
                case membership.SendHeartbeat():
                    self._send_heartbeat()
                case membership.DropJobs():
                    await self._drop_jobs(effect.reason)
                case membership.Deliver():
                    self._registration.on_message(effect.message)
                case membership.End():
                    raise MembershipRejected(f"the gateway refuses this instance for good: {effect.reason}")
                case _:
                    assert_never(effect)

    def _send_register(self) -> None:
        left = self._client is not None and self._me is not None and self._client.offer(self._me)
        self._state = membership.register_sent(self._state, self._clock.now(), left=left)
        if isinstance(self._state, membership.Joining) and self._state.attempt == _ATTEMPTS_IN_SILENCE:
            _log.warning(
                "not in the mesh: no gateway has answered; does one run, with the same gateway.control? "
                "The attempts to join go on"
            )

    def _send_heartbeat(self) -> None:
        if self._me is not None:
            load, prefixes = self._registration.load(), self._registration.prefixes()
            self.send(Heartbeat(self._me.instance, self._me.generation, load, prefixes))

    async def _drop_jobs(self, reason: str) -> None:
        # Not an alarm: at every normal stop the gateway goes first. The jobs' owner warns of those that it costs.
        _log.info("lost the membership of the mesh (generation %s): %s", self.generation, reason)
        await self._close()
        await self._registration.on_lost(reason)
        self._renew()

    def _renew(self) -> None:
        self._send_failed = False
        self._me = self._registration.register(self._registration.draw_generation())

    async def _reconnect(self) -> BusClient[ToWorker, FromWorker]:
        self._client = self._connect()
        await self._client.start()
        return self._client

    async def _close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
