"""The policy `disagg`: prefill and decode apart."""

from typing import Final, Self

from services.scheduling.policies.candidates import prefill_candidate
from services.scheduling.policies.capacity_target import Demand, Target
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import InstanceView, MeshView
from services.scheduling.request import RequestSpec

_FREE_USE: Final = 0.8


class DisaggregatedPolicy(FixedPolicy):
    """P computes every prompt but its last token, whatever the mesh's split says.

    Where all that have room know what their steps cost, the P is taken that would be done first, and the D that would
    be through first with all it has been given: unlike instances then get unlike shares.  Else the least loaded.
    """

    counts_tokens = True

    def __init__(self) -> None:
        super().__init__("full")

    @classmethod
    def configured(cls, split: str | int | float) -> Self:  # noqa: ARG003 - it has its own
        """See PlacementPolicy."""
        return cls()

    def _decode(self, able: list[InstanceView], split: int, request: RequestSpec, mesh: MeshView) -> InstanceView:
        if not _have_costs(able):
            return super()._decode(able, split, request, mesh)
        demand = Demand.of(request, mesh, split)
        targets = [Target.of(view, demand, _FREE_USE, max(0, mesh.held_by(view) - split)) for view in able]
        # A D without room for its KV would keep a P waiting with it.
        targets = [target for target in targets if target.has_room] or targets
        computed_s = self._computed_s(split, mesh)

        def through_s(target: Target) -> float:
            return target.through_s() + (computed_s if mesh.held_by(target.view) < split else 0.0)

        return min(
            [target for target in targets if target.begins] or targets,
            key=lambda target: (through_s(target), target.view.member.instance),
        ).view

    def _computed_s(self, split: int, mesh: MeshView) -> float:
        """Until a P would have computed its part: what a D saves that holds it already."""
        able = [view for view in mesh.prefills if view.member.costs is not None]
        return min((_done_s(view, split, mesh) for view in able), default=0.0)

    def _prefill(self, able: list[InstanceView], split: int, mesh: MeshView) -> InstanceView:
        if not _have_costs(able):
            return super()._prefill(able, split, mesh)

        return min(able, key=lambda view: (_done_s(view, split, mesh), view.member.instance))


def _done_s(view: InstanceView, split: int, mesh: MeshView) -> float:
    """Until this P has computed what it lacks of its part, after all before."""
    busy = prefill_candidate(view).busy
    return busy.backlog_s + busy.stage.seconds(split - mesh.held_by(view))


def _have_costs(views: list[InstanceView]) -> bool:
    return all(view.member.costs is not None for view in views)
