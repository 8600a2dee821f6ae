"""The policy `cronus`: partial prefill (arXiv 2509.17357). P computes the first part of a prompt, D the rest and the
answer.

The split of each request is chosen when a slot of P frees, under what the instances do at that moment.  Beyond the
paper: any number of P and D of any mix (the pair with the earliest predicted first token, among the least busy), the
time of the hand-off over the measured link, D's room for KV, and the expected length of the answer.
"""

from bisect import insort

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
from services.scheduling.policies.eligibility import missing_costs, too_long_with_costs, total_tokens, with_costs
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import InstanceView, MeshView, PlacementPolicy, Wait, token_limit
from services.scheduling.request import RequestSpec


class CronusSettings(msgspec.Struct, frozen=True):
    """The choices that the paper leaves open."""

    balance: Balance = Balance.FINISH
    """The paper balances stages. The earliest first token gives lower latencies and, by the simulator, two or three
    percent more throughput as well (docs/decisions/0012-splits.md)."""
    counts_decoding: bool = True
    """Whether the expected length of the answer is part of the balance."""
    shortlist: int = 3
    """How many P and how many D are weighed against each other: those P that would be first done with the whole prompt,
    and those D whose first token with the first of these P is the earliest."""


class CronusPolicy(PlacementPolicy):
    """Balances the split of every request that does not say its own; those are placed as the policy `fixed` does."""

    def __init__(self, settings: CronusSettings | None = None) -> None:
        self._settings = settings or CronusSettings()
        self._fixed = FixedPolicy("full")

    def refusal(self, request: RequestSpec, mesh: MeshView) -> Failure | None:
        """No decode instance whose steps have a known cost, or none of these large enough."""
        if request.split is not None:
            return self._fixed.refusal(request, mesh)
        return too_long_with_costs(request, mesh)

    def needs_prefill(self, request: RequestSpec) -> bool:
        """All but prompts of one token: one line keeps their order, whether or not P has a part in them."""
        return len(request.prompt) > 1 if request.split is None else self._fixed.needs_prefill(request)

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        """The pair and split with the earliest first token; waits while no P has a slot or no D room."""
        if request.split is not None:
            return self._fixed.place(request, mesh)
        prefills = with_costs(mesh.prefills) if self.needs_prefill(request) else []
        free = [view for view in prefills if view.has_room]
        if prefills and not free:
            return Wait("a free slot at a prefill instance")
        decodes = [view for view in with_costs(mesh.decodes) if _has_room(view, request, mesh)]
        if not decodes:
            return Wait("room at a decode instance")
        return _Decision(request, mesh, self._settings).placement(free, decodes)

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance whose steps have a known cost must have joined."""
        return missing_costs(mesh)


class _Weighed(msgspec.Struct, frozen=True):
    """A pair with the best split on it; without a P, a D alone."""

    prefill: PrefillCandidate | None
    decode: DecodeCandidate
    split: Split

    def first_token_s(self) -> float:
        return self.split.first_token_s

    def candidate(self) -> Candidate:
        prefill = None if self.prefill is None else self.prefill.view.member.instance
        return Candidate(prefill, self.decode.view.member.instance, self.split)


class _Decision:
    """One request that has room at some D, and the mesh as it is now."""

    def __init__(self, request: RequestSpec, mesh: MeshView, settings: CronusSettings) -> None:
        self._prompt_tokens = len(request.prompt)
        self._mesh = mesh
        self._output = request.choices * _expected_output(request, mesh) if settings.counts_decoding else 0.0
        self._balance = settings.balance
        self._shortlist = settings.shortlist
        self._pairs = Pairs(mesh)

    def placement(self, prefills: list[InstanceView], decodes: list[InstanceView]) -> Placement:
        """On the best pair of those shortlisted; `prefills` may be empty."""
        weighed = sorted(self._weigh_all(prefills, decodes), key=_Weighed.first_token_s)
        prefill, decode, split = weighed[0].prefill, weighed[0].decode.view.member, weighed[0].split.tokens
        candidates = tuple([item.candidate() for item in weighed])
        held = self._held(weighed[0].decode.view)
        if prefill is None or split <= held:
            return Placement(None, decode.instance, 0, 0, candidates)
        source = prefill.view.member
        kv_bytes = (split - held) * self._pairs.token_bytes(source.layout, decode.layout)
        return Placement(source.instance, decode.instance, split, kv_bytes, candidates)

    def _weigh_all(self, prefills: list[InstanceView], decodes: list[InstanceView]) -> list[_Weighed]:
        targets = [decode_candidate(view) for view in decodes]
        if not prefills:
            return [self._alone(decode) for decode in targets]
        sources = sorted(map(prefill_candidate, prefills), key=self._whole_prompt_s)
        first, *others = sources[: self._shortlist]
        weighed = self._weigh_with(first, targets)
        best = weighed[: self._shortlist]
        return weighed + [self._weigh(prefill, item.decode) for item in best for prefill in others]

    def _weigh_with(self, prefill: PrefillCandidate, decodes: list[DecodeCandidate]) -> list[_Weighed]:
        """One P with every D that may be in the best pair, whatever its P; the best first."""
        weighed: list[_Weighed] = []
        for decode in sorted(decodes, key=_soonest_s):
            if weighed and _soonest_s(decode) > weighed[0].first_token_s():
                break
            insort(weighed, self._weigh(prefill, decode), key=_Weighed.first_token_s)
        return weighed

    def _whole_prompt_s(self, prefill: PrefillCandidate) -> float:
        return prefill.busy.backlog_s + prefill.busy.stage.seconds(self._prompt_tokens - self._held(prefill.view))

    def _held(self, view: InstanceView) -> int:
        """Tokens of the prompt whose KV it has; D computes the last in any case."""
        return min(self._mesh.held_by(view), self._prompt_tokens - 1)

    def _alone(self, decode: DecodeCandidate) -> _Weighed:
        return _Weighed(None, decode, without_prefill(self._task(decode), decode.busy))

    def _task(self, decode: DecodeCandidate) -> SplitTask:
        return SplitTask(self._prompt_tokens, self._output, held_tokens=self._held(decode.view))

    def _weigh(self, prefill: PrefillCandidate, decode: DecodeCandidate) -> _Weighed:
        task = msgspec.structs.replace(
            self._task(decode),
            prefill_held_tokens=self._held(prefill.view),
            most_tokens=token_limit(prefill.view.member),
        )
        return _Weighed(prefill, decode, choose_split(task, self._pairs.pair(prefill, decode), self._balance))


def _soonest_s(decode: DecodeCandidate) -> float:
    """No first token comes before D is through with its prompts and has made one more step."""
    return decode.busy.backlog_s + decode.busy.step_s


def _has_room(view: InstanceView, request: RequestSpec, mesh: MeshView) -> bool:
    """Whether D is expected to hold this request beside the others; an idle one takes whatever fits at all."""
    if not view.has_room or total_tokens(request) > token_limit(view.member):
        return False
    expected = view.expected_tokens + len(request.prompt) + request.choices * _expected_output(request, mesh)
    return view.outstanding_requests == 0 or expected <= view.member.kv_capacity_tokens


def _expected_output(request: RequestSpec, mesh: MeshView) -> float:
    """Tokens of one choice."""
    known = float(request.max_tokens)
    return known if mesh.expected_output is None else min(known, mesh.expected_output)
