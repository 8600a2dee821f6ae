"""The instances that a policy may choose from, as the balancer wants them."""

import msgspec

from common.costs.models import InstanceCosts
from common.kv.layout import KVLayout
from common.kv.wire import wire_token_bytes
from services.scheduling.policies.balancer import Pair
from services.scheduling.policies.routing import InstanceView, MeshView
from services.scheduling.profiles.stage_times import (
    BusyDecode,
    BusyPrefill,
    DecodeStage,
    PrefillLoad,
    PrefillStage,
    TransferStage,
)

UNBOUNDED_BUDGET = 1 << 30


class PrefillCandidate(msgspec.Struct, frozen=True):
    """A prefill instance that has registered costs."""

    view: InstanceView
    busy: BusyPrefill


class DecodeCandidate(msgspec.Struct, frozen=True):
    """A decode instance that has registered costs."""

    view: InstanceView
    busy: BusyDecode


def present_costs(view: InstanceView) -> InstanceCosts | None:
    """The registered costs, corrected by how long its steps take lately; None where it registered none."""
    costs = view.member.costs
    if costs is None or view.load is None or view.load.cost_factor == 1.0:
        return costs
    return costs.scaled(view.load.cost_factor)


def prefill_candidate(view: InstanceView) -> PrefillCandidate:
    """Of an instance that has registered costs."""
    costs = present_costs(view)
    assert costs is not None
    stage = PrefillStage(costs.prefill, view.member.budget, costs.decode.seconds(1, 0))
    return PrefillCandidate(view, stage.under(PrefillLoad(view.pending_prompts)))


def decode_candidate(view: InstanceView) -> DecodeCandidate:
    """Of an instance that has registered costs."""
    costs = present_costs(view)
    assert costs is not None
    stage = DecodeStage(costs.mixed, costs.decode, view.member.budget or UNBOUNDED_BUDGET, view.member.max_batch)
    return DecodeCandidate(view, stage.under(view.decode_load))


class Pairs:
    """The pairs of one mesh."""

    def __init__(self, mesh: MeshView) -> None:
        self._links = mesh.links
        # Most pairs of a mesh share few layouts, and a decision may weigh dozens of pairs.
        self._wire_bytes: dict[tuple[KVLayout, KVLayout], int] = {}

    def pair(self, prefill: PrefillCandidate, decode: DecodeCandidate) -> Pair:
        """With the link between them."""
        source, target = prefill.view.member, decode.view.member
        link = self._links.get((source.instance, target.instance))
        transfer = TransferStage(
            bytes_per_token=self.token_bytes(source.layout, target.layout),
            bytes_per_s=None if link is None else link.bytes_per_s,
            latency_s=0.0 if link is None else link.round_trip_s,
        )
        return Pair(prefill.busy, transfer, decode.busy, target.layout.block_size)

    def token_bytes(self, source: KVLayout, target: KVLayout) -> int:
        """See wire_token_bytes."""
        key = source, target
        if key not in self._wire_bytes:
            self._wire_bytes[key] = wire_token_bytes(source, target)
        return self._wire_bytes[key]
