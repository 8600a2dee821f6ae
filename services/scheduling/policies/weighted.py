"""The policy `dp`: every decode instance serves whole requests; they are dealt out in proportion to the rates."""

from collections.abc import Mapping, Sequence

from common.costs.models import InstanceCosts
from common.costs.shape import StepShape
from common.ids import InstanceId
from services.scheduling.policies.candidates import UNBOUNDED_BUDGET
from services.scheduling.policies.routing import InstanceView, MeshView
from services.scheduling.policies.whole import BlindPolicy
from services.scheduling.request import RequestSpec

_FULL_STEP_TOKENS = 512


class WeightedPolicy(BlindPolicy):
    """Weighted round robin with split 0: after any number of requests each instance has its share of them, to one.

    The weights are those that mesh.yaml gives, 1 where it gives one to others only; without any, the tokens per second
    of filled steps by the costs, where all have costs; else 1.  A request whose instance has no room waits for it: who
    is dealt what does not depend on who is quick, as in the systems that deal on arrival.  A request that says its own
    split is placed as the policy `fixed` does.
    """

    def pick(self, request: RequestSpec, able: list[InstanceView], mesh: MeshView) -> InstanceView:  # noqa: ARG002
        """The instance whose turn it is."""
        return next_by_weight(able, weights_of(mesh.decodes))


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


def next_by_weight(views: Sequence[InstanceView], weights: Mapping[InstanceId, float]) -> InstanceView:
    """By the quota method of Balinski and Young (1975): of those that one more would not bring a whole request beyond
    their share, the one whose next is due first. `views` is not empty, and their weights are above 0.
    """
    total = sum(weights[view.member.instance] for view in views)
    shares = {view.member.instance: weights[view.member.instance] / total for view in views}
    dealt = sum(view.placed for view in views) + 1
    behind = [view for view in views if view.placed < dealt * shares[view.member.instance]]
    return min(behind, key=lambda view: ((view.placed + 1) / shares[view.member.instance], view.member.instance))
