"""Which pairs of instances really answer: whom to ask for a token, and whose silence counts. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from common.ids import InstanceId, RequestId
from services.scheduling.policies.routing import MeshView, PlacementPolicy

MOST_ASKED = 16
"""Questions out at a time: a mesh of many pairs is proved one batch after the other."""

_PAUSE_S = 1.0
"""Between a question that was refused and the next to the same pair."""
_NAMED = 3
"""Pairs that a reason names."""


class Pair(msgspec.Struct, frozen=True):
    """A way that a request may take through the mesh."""

    prefill: InstanceId | None
    """None: D computes the whole prompt."""
    decode: InstanceId

    def __str__(self) -> str:
        return self.decode if self.prefill is None else f"{self.prefill} → {self.decode}"


class Ask(msgspec.Struct, frozen=True):
    """Send a request of one token through the pair; `answered` or `refused` tells what came of it."""

    pair: Pair


class Drop(msgspec.Struct, frozen=True):
    """Nobody waits any more for the answer to the question that is out at the pair."""

    pair: Pair


def pairs_of(policy: PlacementPolicy, mesh: MeshView) -> tuple[Pair, ...]:
    """Every way through the mesh that `policy` may choose; none where it cannot place an ordinary request."""
    if policy.not_ready(mesh) is not None:
        return ()
    prefills = [view.member.instance for view in mesh.prefills]
    decodes = [view.member.instance for view in mesh.decodes]
    serves_alone = policy.not_ready(MeshView(decodes=mesh.decodes)) is None
    alone = [Pair(None, decode) for decode in decodes] if serves_alone else []
    return (*(Pair(prefill, decode) for prefill in prefills for decode in decodes), *alone)


@dataclass(slots=True, eq=False)
class _Standing:
    """What is known of one pair."""

    pair: Pair
    is_offered: bool = False
    """Whether requests may be placed on it now."""
    answers: bool = False
    has_answered: bool = False
    running: int = 0
    has_sign: bool = False
    """Whether there was one since it began to have requests."""
    silent_since: float | None = None
    """The last sign of its requests, or since when it owes one. Kept where clients leave before any: were each new
    request to start it anew, a pair whose clients lose patience would never be found out."""
    asked_at: float | None = None
    """Since when a question is out."""
    ask_from: float = 0.0


class Proofs:
    """A pair is proved by a token that came through it, a client's or one that was asked for.

    A new pair is asked at once. One whose requests show no sign for `silence_s` is asked; one that does not answer
    within as long again is held to be silent, and asked again and again until a token comes. An idle pair that has
    answered is left alone. Without `silence_s` nobody is asked, and every pair counts as proved.

    Time is that of the last `tick`.
    """

    def __init__(self, silence_s: float | None, most_asked: int = MOST_ASKED) -> None:
        self._silence_s = silence_s
        self._most_asked = most_asked
        self._now = 0.0
        self._pairs: tuple[Pair, ...] = ()
        self._standings: dict[Pair, _Standing] = {}
        self._running: dict[RequestId, _Standing] = {}

    # ------------------------------------------------------------ what happens to the requests of clients

    def placed(self, request: RequestId, pair: Pair) -> None:
        """The request was sent to the pair; one that is placed anew has left the pair before."""
        if self._silence_s is None:
            return
        self.ended(request)
        standing = self._running[request] = self._standing(pair)
        if standing.running == 0:
            standing.has_sign = False
        if standing.silent_since is None:
            standing.silent_since = self._now
        standing.running += 1

    def progressed(self, request: RequestId) -> None:
        """Some of its work is done, short of a token."""
        if (standing := self._running.get(request)) is not None:
            standing.silent_since, standing.has_sign = self._now, True

    def token(self, request: RequestId) -> None:
        """A token of the request has come."""
        if (standing := self._running.get(request)) is not None:
            standing.silent_since, standing.has_sign = self._now, True
            standing.answers = standing.has_answered = True

    def ended(self, request: RequestId) -> None:
        """The request runs no more, however it ended."""
        if (standing := self._running.pop(request, None)) is not None:
            standing.running -= 1
            if standing.running == 0 and standing.has_sign:
                standing.silent_since = None

    def lost(self, instance: InstanceId) -> list[Drop]:
        """A life of the instance is over; the next has to prove itself."""
        gone = [pair for pair in self._standings if instance in (pair.prefill, pair.decode)]
        self._pairs = ()  # its next life makes the same pairs, and has to be asked
        return [Drop(pair) for pair in gone if self._standings.pop(pair).asked_at is not None]

    # ------------------------------------------------------------ what comes of questions

    def answered(self, pair: Pair) -> None:
        """The token that was asked for has come."""
        if (standing := self._standings.get(pair)) is not None:
            standing.asked_at = None
            standing.silent_since = self._now if standing.running else None
            standing.answers = standing.has_answered = True

    def refused(self, pair: Pair) -> None:
        """An instance gave up the question, which tells as much as silence."""
        if (standing := self._standings.get(pair)) is not None:
            standing.asked_at, standing.answers = None, False
            standing.ask_from = self._now + _PAUSE_S

    # ------------------------------------------------------------ time

    def tick(self, now: float, pairs: tuple[Pair, ...]) -> list[Ask | Drop]:
        """It is `now`, and requests may be placed on `pairs`. What is to be asked, and whom to wait for no longer."""
        self._now = now
        if self._silence_s is None:
            return []
        dropped = [*self._offer(pairs), *self._overdue(self._silence_s)]
        return [*dropped, *self._questions(self._silence_s)]

    def not_ready(self, pairs: tuple[Pair, ...]) -> str | None:
        """Why none of `pairs` is known to answer, in words for an operator; None: one is, or there are none."""
        if self._silence_s is None or not pairs:
            return None
        standings = [self._standings.get(pair) or _Standing(pair) for pair in pairs]
        if any(standing.answers for standing in standings):
            return None
        named = "; ".join(self._why(standing) for standing in standings[:_NAMED])
        more = len(standings) - _NAMED
        return f"no pair of instances answers: {named}" + (f"; and {more} more" if more > 0 else "")

    def _why(self, standing: _Standing) -> str:
        if not standing.has_answered:
            return f"{standing.pair} has not answered its first request yet; its log may say why"
        since = standing.silent_since
        silent = "" if since is None else f", gave no token for {self._now - since:.1f} s"
        return f"{standing.pair} has {standing.running} requests{silent} and did not answer when it was asked to"

    def _standing(self, pair: Pair) -> _Standing:
        if (standing := self._standings.get(pair)) is None:
            standing = self._standings[pair] = _Standing(pair)
        return standing

    def _offer(self, pairs: tuple[Pair, ...]) -> list[Drop]:
        """Follow the mesh; a pair that is not offered any more is forgotten when it has nothing left to do."""
        if pairs == self._pairs:
            return []
        self._pairs = pairs
        for pair in pairs:
            self._standing(pair)
        offered, dropped = set(pairs), list[Drop]()
        for pair, standing in [*self._standings.items()]:
            standing.is_offered = pair in offered
            if standing.is_offered:
                continue
            if standing.asked_at is not None:
                standing.asked_at = None
                dropped.append(Drop(pair))
            if standing.running == 0:
                del self._standings[pair]
        return dropped

    def _overdue(self, silence_s: float) -> list[Drop]:
        dropped: list[Drop] = []
        for standing in self._standings.values():
            if standing.asked_at is not None and self._now - standing.asked_at >= silence_s:
                standing.asked_at, standing.answers, standing.ask_from = None, False, self._now
                dropped.append(Drop(standing.pair))
        return dropped

    def _questions(self, silence_s: float) -> Iterable[Ask]:
        standings = self._standings.values()
        room = self._most_asked - sum(standing.asked_at is not None for standing in standings)
        wanted = [standing for standing in standings if self._is_wanted(standing, silence_s)]
        # Those never asked come first: pairs that stay silent must not keep a new one waiting.
        for standing in sorted(wanted, key=lambda standing: standing.ask_from)[: max(0, room)]:
            standing.asked_at = self._now
            yield Ask(standing.pair)

    def _is_wanted(self, standing: _Standing, silence_s: float) -> bool:
        if not standing.is_offered or standing.asked_at is not None:
            return False
        if not standing.answers:
            return standing.ask_from <= self._now
        since = standing.silent_since
        return standing.running > 0 and since is not None and self._now - since >= silence_s
