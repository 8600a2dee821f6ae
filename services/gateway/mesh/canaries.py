"""Asks pairs of instances for one token, as `membership.proofs` decides, and hears whether it comes."""

import logging
from collections.abc import Callable, Iterable
from typing import assert_never

from common.entropy import Entropy
from common.ids import InstanceId, RequestId, TransferId
from common.messages.control import (
    Abort,
    FromWorker,
    JobFailed,
    KVLanded,
    PrefillReleased,
    PrefixReused,
    TokensEmitted,
    ToWorker,
)
from common.messages.sampling import SamplingParams
from services.scheduling.lifecycle.events import Arrived
from services.scheduling.lifecycle.jobs import jobs_of
from services.scheduling.membership.members import Member
from services.scheduling.membership.proofs import Ask, Drop, Pair, Proofs
from services.scheduling.placement import Placement
from services.scheduling.request import RequestSpec

_log = logging.getLogger(__name__)


class Canaries:
    """The questions that are out. They are jobs like any other to the instances, and no requests to the life cycle:
    no client waits for them, and they are in no queue and no ledger.
    """

    def __init__(
        self,
        silence_s: float | None,
        member: Callable[[InstanceId], Member | None],
        send: Callable[[InstanceId, ToWorker], None],
        entropy: Entropy,
    ) -> None:
        self._silence_s = silence_s
        self._proofs = Proofs(silence_s)
        self._member = member
        self._send = send
        self._entropy = entropy
        self._asked: dict[RequestId, Pair] = {}

    # ------------------------------------------------------------ what the mesh tells

    def placed(self, request: RequestId, placement: Placement) -> None:
        """A client's request was sent to its instances."""
        self._proofs.placed(request, Pair(placement.prefill, placement.decode))

    def delivered(self, request: RequestId) -> None:
        """Tokens of a client's request have come."""
        self._proofs.token(request)

    def ended(self, request: RequestId) -> None:
        """A client's request runs no more."""
        self._proofs.ended(request)

    def heard(self, message: FromWorker) -> None:
        """A worker's message: of a client's request, or of one of these."""
        match message:
            case TokensEmitted(items=items):
                if self._asked:
                    for request in {item.request for item in items if item.request in self._asked}:
                        self._proofs.answered(self._asked.pop(request))
            case PrefillReleased(request=request) | PrefixReused(request=request) | KVLanded(request=request):
                self._proofs.progressed(request)
            case JobFailed(instance=instance, request=request, failure=failure):
                if (pair := self._asked.pop(request, None)) is not None:
                    _log.warning("%s did not answer when asked to: %s: %s", pair, instance, failure.message)
                    self._abort(request, pair)
                    self._proofs.refused(pair)
            case _:
                pass

    def lost(self, instance: InstanceId) -> None:
        """A life of the instance is over."""
        self._perform(self._proofs.lost(instance))

    def tick(self, now: float, pairs: tuple[Pair, ...]) -> None:
        """It is `now`, and requests may be placed on `pairs`."""
        self._perform(self._proofs.tick(now, pairs))

    def not_ready(self, pairs: tuple[Pair, ...]) -> str | None:
        """Why none of `pairs` is known to answer; None: one is."""
        return self._proofs.not_ready(pairs)

    # ------------------------------------------------------------ questions

    def _perform(self, effects: Iterable[Ask | Drop]) -> None:
        for effect in effects:
            match effect:
                case Ask(pair):
                    self._ask(pair)
                case Drop(pair):
                    self._drop(pair)
                case _ as unreachable:
                    assert_never(unreachable)

    def _ask(self, pair: Pair) -> None:
        decode = self._member(pair.decode)
        prefill = None if pair.prefill is None else self._member(pair.prefill)
        if decode is None or self._silence_s is None or (prefill is None and pair.prefill is not None):
            self._proofs.refused(pair)
            return
        request = RequestId(f"canary-{self._entropy.hex(6)}")
        # Two tokens, which every vocabulary has: one for P to compute, and the last, which D always does.
        spec = RequestSpec(request, (0, 0), SamplingParams(temperature=0.0), max_tokens=1, deadline_at=0.0)
        transfer = TransferId(f"{request}:{self._entropy.hex(4)}")
        self._asked[request] = pair
        arrived = Arrived(0.0, spec, transfer, self._entropy.take(16))
        split = 0 if prefill is None else 1
        for job in jobs_of(arrived, split, prefill, decode, self._silence_s):
            self._send(job.instance, job.message)

    def _drop(self, pair: Pair) -> None:
        for request in [request for request, asked in self._asked.items() if asked == pair]:
            del self._asked[request]
            _log.warning("%s has not answered %s, which is dropped", pair, request)
            self._abort(request, pair)

    def _abort(self, request: RequestId, pair: Pair) -> None:
        for instance in (pair.prefill, pair.decode):
            if instance is not None:
                self._send(instance, Abort(request))
