"""What the policies have in common that serve whole requests at decode instances, with split 0."""

from abc import abstractmethod

from common.errors import Failure, FailureKind
from services.scheduling.placement import Placement
from services.scheduling.policies.eligibility import missing_role, too_long, total_tokens
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import InstanceView, MeshView, PlacementPolicy, Wait, token_limit
from services.scheduling.request import RequestSpec


class WholePolicy(PlacementPolicy):
    """Chooses one decode instance. A request that says its own split is placed as the policy `fixed` does."""

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
        """The instance that `choose` says."""
        if request.split is not None:
            return self._fixed.place(request, mesh)
        chosen = self.choose(request, mesh)
        if isinstance(chosen, Wait):
            return chosen
        return Placement(prefill=None, decode=chosen.member.instance, split=0, kv_bytes=0)

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance must have joined."""
        return missing_role(False, mesh)

    @abstractmethod
    def choose(self, request: RequestSpec, mesh: MeshView) -> InstanceView | Wait:
        """A decode instance with room for all of a request."""


class BlindPolicy(WholePolicy):
    """Settles who serves a request whatever anybody is doing; a request whose instance has no room waits for it."""

    def choose(self, request: RequestSpec, mesh: MeshView) -> InstanceView | Wait:
        """The one that it falls to, of those that can hold the request."""
        able = [view for view in mesh.decodes if total_tokens(request) <= token_limit(view.member)]
        if not able:
            return Wait("a decode instance that holds so many tokens")
        chosen = self.pick(request, able, mesh)
        return chosen if chosen.has_room else Wait(f"room at decode instance {chosen.member.instance!r}")

    @abstractmethod
    def pick(self, request: RequestSpec, able: list[InstanceView], mesh: MeshView) -> InstanceView:
        """One of `able`, decode instances of `mesh`; there is at least one."""
