"""The policy `capacity`: each request goes where it is through soonest, by what each instance can do.

After the scheduler of Xiong et al. (arXiv 2504.15303), which looks at two things of an instance: its compute capacity
and its use of KV memory.  How it joins them is not public; the score is ours:

    S(r, i) = (Q_i + w(r, i)) · g(u_i)

Q_i are the seconds that instance i needs for all it has been given, queued and running, and w(r, i) those for request
r, both by i's own costs (`rates`).  u_i is the share of its KV memory that all this is expected to take when it takes
most (`kv_use`); g is 1 up to u0, then (1 - u0) / (1 - u), and infinite where the memory would be full.

The least S wins among the instances that would begin with the request at once: their batch is not full, and S is
finite.  But not where it would be through only after everybody could be through with all that waits (T in
`capacity_target`): of the last requests of a burst a slow instance would still be working when all others are done.
Then, and where no instance would begin at once, it may queue at an instance, but only at that of least Q + w of all.
If that one has no room, the request waits at the gateway: whoever is free first can have it.

Beyond the paper, pairs are scored too, so that a mesh may have any number of prefill instances.  The balancer chooses
the split s of a pair (P, D); w is then what D has left to do of r, and what D would lose by waiting for P is added:

    S(r, P, D) = (Q_D + w(r from s on, D) + max(0, P hands over - D is through with its prompts) · f_D) · g(u_D)

with f_D the share of D's batch that is free: whoever decodes goes on meanwhile.  A pair whose P has no free slot may
win.  Then the request waits for one; so an idle D never waits long for a busy P, and a full one does.
"""

from typing import Final

import msgspec

from common.errors import Failure
from services.scheduling.placement import Candidate, Placement
from services.scheduling.policies.balancer import Balance, Split, SplitTask, choose_split, without_prefill
from services.scheduling.policies.candidates import (
    DecodeCandidate,
    Pairs,
    PrefillCandidate,
    decode_candidate,
    prefill_candidate,
)
from services.scheduling.policies.capacity_target import Demand, Target, shared_finish_s
from services.scheduling.policies.eligibility import missing_costs, too_long_with_costs, total_tokens, with_costs
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import InstanceView, MeshView, PlacementPolicy, Wait, token_limit
from services.scheduling.request import RequestSpec

_NO_ROOM = Wait("room at a decode instance")
_ROUNDING: Final = 1.0 + 1e-9


class CapacitySettings(msgspec.Struct, frozen=True):
    """What may be switched off to see what it is worth, and the choices that the paper leaves open."""

    counts_work: bool = True
    """Whether Q and w count. Without them the least used KV memory wins, and no prefill instance is used."""
    counts_kv: bool = True
    """Whether u counts. Without it D is given more than it is expected to hold, and preempts."""
    free_use: float = 0.8
    """u0: up to this share of the KV memory its use does not matter."""
    balance: Balance | None = None
    """What splits are chosen for. None: for equal stages where D has all the sequences that it takes, since then a
    place among them is waited for and not its prompts; else for the earliest first token."""
    shortlist: int = 3
    """How many P and how many D are weighed in pairs: those P that would be first done with the whole prompt, and
    those D with the least score."""


class CapacityPolicy(PlacementPolicy):
    """Places requests by predicted work. One that says its own split is placed as the policy `fixed` does."""

    counts_tokens = True

    def __init__(self, settings: CapacitySettings | None = None) -> None:
        self._settings = settings or CapacitySettings()
        self._fixed = FixedPolicy(0)

    def refusal(self, request: RequestSpec, mesh: MeshView) -> Failure | None:
        """No decode instance whose steps have a known cost, or none of these large enough."""
        if request.split is not None:
            return self._fixed.refusal(request, mesh)
        return too_long_with_costs(request, mesh)

    def needs_prefill(self, request: RequestSpec) -> bool:
        """Only where its own split says so: any other can be served without."""
        return request.split is not None and self._fixed.needs_prefill(request)

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        """The instance or pair with the least score."""
        if request.split is not None:
            return self._fixed.place(request, mesh)
        able = [view for view in with_costs(mesh.decodes) if total_tokens(request) <= token_limit(view.member)]
        # Most of what waits, waits for a slot: then there is nothing to weigh.
        if not any(view.has_room for view in able):
            return _NO_ROOM
        return _Decision(request, mesh, self._settings).among(able)

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance whose steps have a known cost must have joined."""
        return missing_costs(mesh)


class _Weighed(msgspec.Struct, frozen=True):
    """A D alone, or with a P."""

    score: float
    target: Target
    split: Split
    prefill: PrefillCandidate | None = None

    def order(self) -> tuple[float, float, str]:
        """Among equal scores the less used memory, then the id."""
        return self.score, self.target.use, self.target.view.member.instance

    def candidate(self) -> Candidate:
        prefill = None if self.prefill is None else self.prefill.view.member.instance
        return Candidate(prefill, self.target.view.member.instance, self.split)


class _Decision:
    """One request, and the mesh as it is now."""

    def __init__(self, request: RequestSpec, mesh: MeshView, settings: CapacitySettings) -> None:
        self._mesh = mesh
        self._settings = settings
        self._prompt = len(request.prompt)
        self._demand = Demand.of(request, mesh)

    def among(self, able: list[InstanceView]) -> Placement | Wait:
        """At one of the decode instances that can hold the request at all."""
        counts_work, counts_kv = self._settings.counts_work, self._settings.counts_kv
        free_use = self._settings.free_use if counts_kv else None
        targets = [Target.of(view, self._demand, free_use, self._held(view)) for view in able]
        with_room = [target for target in targets if target.has_room]
        if not with_room:
            return _NO_ROOM
        ready = [target for target in with_room if target.begins]
        if not counts_work:
            return self._best(ready or with_room)
        soonest = min(targets, key=Target.through_s)
        if ready and (soonest in ready or self._in_time(ready, targets)):
            return self._best(ready)
        return self._best([soonest]) if soonest.has_room else _NO_ROOM

    def _in_time(self, ready: list[Target], targets: list[Target]) -> bool:
        """Whether one of `ready` would be through with it before all could be through with all that waits.

        Nobody knows when those whose memory is full take more: they are not counted on.
        """
        able = [target for target in targets if target.has_room or target.pressure < float("inf")]
        finish_s = shared_finish_s(able, max(1, self._mesh.waiting))
        return min(target.score() for target in ready) <= finish_s * _ROUNDING

    def _best(self, targets: list[Target]) -> Placement | Wait:
        """On one of these, alone or with a P."""
        ordered = sorted(targets, key=lambda target: (self._score(target), target.use, target.view.member.instance))
        decodes = [(target, decode_candidate(target.view)) for target in ordered[: self._settings.shortlist]]
        weighed = [self._alone(target, decode) for target, decode in decodes]
        pairs = Pairs(self._mesh)
        for prefill in self._prefills():
            weighed += [pair for decode in decodes if (pair := self._pair(pairs, prefill, *decode)) is not None]
        weighed.sort(key=_Weighed.order)
        best = weighed[0]
        if best.prefill is not None and not best.prefill.view.has_room:
            return Wait("a free slot at a prefill instance")
        moved = best.split.tokens - self._held(best.target.view)
        return _placement(best, moved, pairs, tuple([item.candidate() for item in weighed]))

    def _held(self, view: InstanceView) -> int:
        """Tokens of the prompt whose KV it has; the last it computes in any case."""
        return min(self._mesh.held_by(view), self._prompt - 1)

    def _score(self, target: Target) -> float:
        """S where D computes all of it."""
        return target.score() if self._settings.counts_work else target.pressure

    def _prefills(self) -> list[PrefillCandidate]:
        """Those that would be first done with the whole prompt; one without a free slot may be worth waiting for."""
        if not self._settings.counts_work or self._prompt < 2:
            return []
        prefills = [prefill_candidate(view) for view in with_costs(self._mesh.prefills)]
        prefills.sort(key=self._whole_prompt_s)
        return prefills[: self._settings.shortlist]

    def _whole_prompt_s(self, prefill: PrefillCandidate) -> float:
        return prefill.busy.backlog_s + prefill.busy.stage.seconds(self._prompt - self._held(prefill.view))

    def _alone(self, target: Target, decode: DecodeCandidate) -> _Weighed:
        task = SplitTask(self._prompt, held_tokens=self._held(target.view))
        return _Weighed(self._score(target), target, without_prefill(task, decode.busy))

    def _pair(
        self, pairs: Pairs, prefill: PrefillCandidate, target: Target, decode: DecodeCandidate
    ) -> _Weighed | None:
        """None where P has no part in the split."""
        held = self._held(target.view)
        task = SplitTask(
            self._prompt,
            self._demand.output_tokens,
            held_tokens=held,
            prefill_held_tokens=self._held(prefill.view),
            most_tokens=token_limit(prefill.view.member),
        )
        balance = self._settings.balance or (Balance.STAGES if decode.busy.is_full() else Balance.FINISH)
        split = choose_split(task, pairs.pair(prefill, decode), balance)
        if split.tokens <= held:
            return None
        late_s = max(0.0, split.first_token_s - split.decode_s - decode.busy.backlog_s)
        through_s = target.through_s() - (split.tokens - held) * target.rates.prompt_s + late_s * target.idle
        return _Weighed(through_s * target.pressure, target, split, prefill)


def _placement(best: _Weighed, moved: int, pairs: Pairs, candidates: tuple[Candidate, ...]) -> Placement:
    decode = best.target.view.member
    if best.prefill is None:
        return Placement(None, decode.instance, 0, 0, candidates)
    source, tokens = best.prefill.view.member, best.split.tokens
    kv_bytes = moved * pairs.token_bytes(source.layout, decode.layout)
    return Placement(source.instance, decode.instance, tokens, kv_bytes, candidates)
