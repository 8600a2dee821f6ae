"""The policy `disagg`: prefill and decode apart."""

from typing import Final, Self

from services.scheduling.candidates import prefill_candidate
from services.scheduling.capacity_target import Demand, Target
from services.scheduling.fixed import FixedPolicy
from services.scheduling.request import RequestSpec
from services.scheduling.routing import InstanceView, MeshView

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
        targets = [Target.of(view, demand, free_use=_FREE_USE) for view in able]
        # A D without room for its KV would keep a P waiting with it.
        targets = [target for target in targets if target.has_room] or targets
        return min(
            [target for target in targets if target.begins] or targets,
            key=lambda target: (target.through_s(), target.view.member.instance),
        ).view

    def _prefill(self, able: list[InstanceView], split: int) -> InstanceView:
        if not _have_costs(able):
            return super()._prefill(able, split)

        def done_s(view: InstanceView) -> float:
            busy = prefill_candidate(view).busy
            return busy.backlog_s + busy.stage.seconds(split)

        return min(able, key=lambda view: (done_s(view), view.member.instance))


def _have_costs(views: list[InstanceView]) -> bool:
    return all(view.member.costs is not None for view in views)
