"""The policy `cronus`: partial prefill (arXiv 2509.17357). P computes the first part of a prompt, D the rest and the
answer.

The split of each request is chosen when a slot of P frees, under what the instances do at that moment.  Beyond the
paper: any number of P and D of any mix (the pair with the earliest predicted first token, among the least busy), the
time of the hand-off over the measured link, D's room for KV, and the expected length of the answer.
"""

import msgspec

from common.errors import Failure, FailureKind
from common.kv.wire import wire_token_bytes
from common.messages.control import Role
from services.scheduling.balancer import Balance, SplitTask, choose_split, without_prefill
from services.scheduling.candidates import decode_stage, pair_of, prefill_load
from services.scheduling.eligibility import missing_role, too_long, total_tokens
from services.scheduling.fixed import FixedPolicy
from services.scheduling.placement import Candidate, Placement
from services.scheduling.request import RequestSpec
from services.scheduling.routing import InstanceView, MeshView, PlacementPolicy, Wait, token_limit


class CronusSettings(msgspec.Struct, frozen=True):
    """The choices that the paper leaves open."""

    balance: Balance | None = None
    """None (ours): equal stages while others wait, for throughput; else the earliest first token, for nobody gains by
    a P that is kept busy. The paper balances always."""
    counts_decoding: bool = True
    """Whether the expected length of the answer is part of the balance."""
    shortlist: int = 3
    """How many P and how many D are weighed against each other, the least busy."""


class CronusPolicy(PlacementPolicy):
    """Balances the split of every request that does not say its own; those are placed as the policy `fixed` does."""

    def __init__(self, settings: CronusSettings | None = None) -> None:
        self._settings = settings or CronusSettings()
        self._fixed = FixedPolicy("full")

    def refusal(self, request: RequestSpec, mesh: MeshView) -> Failure | None:
        """No decode instance whose steps have a known cost, or none large enough."""
        if request.split is not None:
            return self._fixed.refusal(request, mesh)
        if (missing := self.not_ready(mesh)) is not None:
            return Failure(FailureKind.NO_INSTANCE, missing)
        return too_long(request, 0, mesh)

    def needs_prefill(self, request: RequestSpec) -> bool:
        """All but prompts of one token: one line keeps their order, whether or not P has a part in them."""
        return len(request.prompt) > 1 if request.split is None else self._fixed.needs_prefill(request)

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        """The pair and split with the earliest first token; waits while no P has a slot or no D room."""
        if request.split is not None:
            return self._fixed.place(request, mesh)
        prefills = [view for view in mesh.prefills if view.member.costs is not None]
        free = [view for view in prefills if view.has_room]
        if prefills and not free:
            return Wait("a free slot at a prefill instance")
        decodes = [view for view in mesh.decodes if _has_room(view, request, mesh)]
        if not decodes:
            return Wait("room at a decode instance")
        return self._best(request, mesh, self._shortlist(free), self._shortlist(decodes))

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance whose steps have a known cost must have joined."""
        if (missing := missing_role(False, mesh)) is not None:
            return missing
        if all(view.member.costs is None for view in mesh.decodes):
            return (
                "no decode instance knows what its steps cost, and the policy needs that; give instances[].profile "
                "a file of `pdmesh profile`, or set instances[].self_profile: true"
            )
        return None

    def _shortlist(self, views: list[InstanceView]) -> list[InstanceView]:
        most = self._settings.shortlist
        return views if len(views) <= most else sorted(views, key=_pending_seconds)[:most]

    def _best(
        self, request: RequestSpec, mesh: MeshView, prefills: list[InstanceView], decodes: list[InstanceView]
    ) -> Placement:
        helpers: list[InstanceView | None] = [*prefills] or [None]
        pairs = [(prefill, decode) for decode in decodes for prefill in helpers]
        weighed = [(self._candidate(request, mesh, p, d), p, d) for p, d in pairs]
        weighed.sort(key=lambda item: item[0].split.first_token_s)
        best, prefill, decode = weighed[0]
        tokens = best.split.tokens
        if prefill is None or tokens == 0:
            prefill_id, kv_bytes = None, 0
        else:
            prefill_id = prefill.member.instance
            kv_bytes = tokens * wire_token_bytes(prefill.member.layout, decode.member.layout)
        candidates = tuple([candidate for candidate, _, _ in weighed])
        return Placement(prefill_id, decode.member.instance, tokens, kv_bytes, candidates)

    def _candidate(
        self, request: RequestSpec, mesh: MeshView, prefill: InstanceView | None, decode: InstanceView
    ) -> Candidate:
        task = SplitTask(
            prompt_tokens=len(request.prompt),
            expected_output=self._expected_output(request, mesh) if self._settings.counts_decoding else 0.0,
            most_tokens=None if prefill is None else token_limit(prefill.member),
        )
        if prefill is None:
            split = without_prefill(task, decode.decode_load, decode_stage(decode))
            return Candidate(None, decode.member.instance, split)
        pair = pair_of(prefill, decode, mesh)
        split = choose_split(task, prefill_load(prefill), decode.decode_load, pair, self._balance(mesh))
        return Candidate(prefill.member.instance, decode.member.instance, split)

    def _balance(self, mesh: MeshView) -> Balance:
        if self._settings.balance is not None:
            return self._settings.balance
        return Balance.STAGES if mesh.waiting > 1 else Balance.FINISH

    def _expected_output(self, request: RequestSpec, mesh: MeshView) -> float:
        known = float(request.max_tokens)
        return known if mesh.expected_output is None else min(known, mesh.expected_output)


def _has_room(view: InstanceView, request: RequestSpec, mesh: MeshView) -> bool:
    """Whether D is expected to hold this request beside the others; an idle one takes whatever fits at all."""
    if view.member.costs is None or not view.has_room or total_tokens(request) > token_limit(view.member):
        return False
    output = request.max_tokens if mesh.expected_output is None else min(request.max_tokens, mesh.expected_output)
    expected = view.expected_tokens + len(request.prompt) + request.choices * output
    return view.outstanding_requests == 0 or expected <= view.member.kv_capacity_tokens


def _pending_seconds(view: InstanceView) -> float:
    costs = view.member.costs
    assert costs is not None
    if view.member.role is Role.PREFILL:
        return sum(map(costs.prefill.seconds, view.pending_prompts))
    return decode_stage(view).backlog_seconds(view.decode_load)
