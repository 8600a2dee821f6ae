"""The policy `dp`: every decode instance serves whole requests; they are dealt out in proportion to the rates."""

from common.errors import Failure, FailureKind
from services.scheduling.candidates import UNBOUNDED_BUDGET
from services.scheduling.eligibility import missing_role, too_long, total_tokens
from services.scheduling.fixed import FixedPolicy
from services.scheduling.placement import Placement
from services.scheduling.request import RequestSpec
from services.scheduling.routing import InstanceView, MeshView, PlacementPolicy, Wait, token_limit

_FULL_STEP_TOKENS = 512


class WeightedPolicy(PlacementPolicy):
    """Weighted round robin with split 0: the next request goes to the instance that is furthest behind its share.

    The weight of an instance is what mesh.yaml gives it, else the tokens per second of its filled steps by its costs,
    else 1.  A request whose instance has no room waits for it: who is dealt what does not depend on who is quick, as in
    the systems that deal on arrival.  A request that says its own split is placed as the policy `fixed` does.
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
        """The instance whose share is least used, of those that can hold the request."""
        if request.split is not None:
            return self._fixed.place(request, mesh)
        able = [view for view in mesh.decodes if total_tokens(request) <= token_limit(view.member)]
        if not able:
            return Wait("a decode instance that holds so many tokens")
        next_one = min(able, key=lambda view: ((view.placed + 1) / weight_of(view), view.member.instance))
        if not next_one.has_room:
            return Wait(f"room at decode instance {next_one.member.instance!r}")
        return Placement(prefill=None, decode=next_one.member.instance, split=0, kv_bytes=0)

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance must have joined."""
        return missing_role(False, mesh)


def weight_of(view: InstanceView) -> float:
    """The rate of an instance, in units that are the same for all of a mesh."""
    member = view.member
    if member.weight is not None:
        return member.weight
    if member.costs is None:
        return 1.0
    tokens = min(member.budget or UNBOUNDED_BUDGET, _FULL_STEP_TOKENS)
    mixed = member.costs.mixed
    return tokens / (mixed.base + mixed.per_token * tokens)
