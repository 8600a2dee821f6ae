"""The policy `dp`: every decode instance serves whole requests; they are dealt out in proportion to the rates."""

from collections.abc import Sequence

from common.costs.models import InstanceCosts
from common.costs.shape import StepShape
from common.errors import Failure, FailureKind
from common.ids import InstanceId
from services.scheduling.candidates import UNBOUNDED_BUDGET
from services.scheduling.eligibility import missing_role, too_long, total_tokens
from services.scheduling.fixed import FixedPolicy
from services.scheduling.placement import Placement
from services.scheduling.request import RequestSpec
from services.scheduling.routing import InstanceView, MeshView, PlacementPolicy, Wait, token_limit

_FULL_STEP_TOKENS = 512


class WeightedPolicy(PlacementPolicy):
    """Weighted round robin with split 0: after any number of requests each instance has its share of them, to one.

    The weights are those that mesh.yaml gives, 1 where it gives one to others only; without any, the tokens per second
    of filled steps by the costs, where all have costs; else 1.  A request whose instance has no room waits for it: who
    is dealt what does not depend on who is quick, as in the systems that deal on arrival.  A request that says its own
    split is placed as the policy `fixed` does.
    """

    def __init__(self) -> None:
        self._fixed = FixedPolicy(0)

    def refusal(self, request: RequestSpec, mesh: MeshView) -> Failure | None:
        """No decode instance, or none large enough."""
        if request.split is not None:
            return self._fixed.refusal(request, mesh)
        if (missing := missing_role(False, mesh)) is not None:
            return Failure(FailureKind.NO_INSTANCE, missing)
        return too_long(request, 0, mesh)

    def needs_prefill(self, request: RequestSpec) -> bool:
        """Only where its own split says so."""
        return request.split is not None and self._fixed.needs_prefill(request)

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        """The instance whose turn it is, of those that can hold the request."""
        if request.split is not None:
            return self._fixed.place(request, mesh)
        weights = weights_of(mesh.decodes)
        able = [view for view in mesh.decodes if total_tokens(request) <= token_limit(view.member)]
        if not able:
            return Wait("a decode instance that holds so many tokens")
        next_one = _next(able, weights)
        if not next_one.has_room:
            return Wait(f"room at decode instance {next_one.member.instance!r}")
        return Placement(prefill=None, decode=next_one.member.instance, split=0, kv_bytes=0)

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance must have joined."""
        return missing_role(False, mesh)


def weights_of(views: Sequence[InstanceView]) -> dict[InstanceId, float]:
    """The rates of the instances, all in the same unit."""
    members = [view.member for view in views]
    if any(member.weight is not None for member in members):
        return {member.instance: 1.0 if member.weight is None else member.weight for member in members}
    costs = [member.costs for member in members if member.costs is not None]
    if len(costs) < len(members):
        return {member.instance: 1.0 for member in members}
    return {member.instance: _tokens_per_s(cost, member.budget) for member, cost in zip(members, costs, strict=True)}


def _tokens_per_s(costs: InstanceCosts, budget: int | None) -> float:
    """Of steps with nothing but chunks."""
    tokens = min(budget or UNBOUNDED_BUDGET, _FULL_STEP_TOKENS)
    return tokens / costs.mixed.seconds(StepShape(chunk_tokens=tokens))


def _next(views: list[InstanceView], weights: dict[InstanceId, float]) -> InstanceView:
    """By the quota method of Balinski and Young (1975): of those that one more would not bring a whole request beyond
    their share, the one whose next is due first. `views` is not empty, and their weights are above 0.
    """
    total = sum(weights[view.member.instance] for view in views)
    shares = {view.member.instance: weights[view.member.instance] / total for view in views}
    dealt = sum(view.placed for view in views) + 1
    behind = [view for view in views if view.placed < dealt * shares[view.member.instance]]
    return min(behind, key=lambda view: ((view.placed + 1) / shares[view.member.instance], view.member.instance))
