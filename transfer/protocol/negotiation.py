"""What two sides agree on, from what each says it can: a pure decision that both make alike."""

import msgspec

from common.kv.layout import KVDType
from common.kv.wire import WireFormat, wire_format
from transfer.errors import LayoutMismatch, RefusalReason, brief
from transfer.plan import CopyPlan, Region, plan_copy
from transfer.protocol.messages import Capabilities, Refusal


class Agreement(msgspec.Struct, frozen=True):
    """How a hand-off will be done."""

    version: int
    plan: CopyPlan
    segment_bytes: int

    @property
    def casting_side(self) -> str:
        """Who converts elements, for a person: "source", "sink" or "nobody"."""
        plan = self.plan
        if plan.source.dtype is plan.target.dtype and plan.source.scales == plan.target.scales:
            return "nobody"
        return "source" if plan.wire.casts_at_source else "sink"


def agree(source: Capabilities, sink: Capabilities, region: Region) -> Agreement | Refusal:
    """The agreement, or a refusal that names the field, both values, and what would work."""
    version = source.versions.common_with(sink.versions)
    if version is None:
        return _refuse(
            RefusalReason.WIRE_VERSION,
            "versions",
            _spoken(source),
            _spoken(sink),
            "run releases whose versions overlap",
        )
    try:
        plan = plan_copy(source.layout, sink.layout, region)
    except LayoutMismatch as mismatch:
        return Refusal(RefusalReason.LAYOUT, str(mismatch), mismatch.field)
    wire = _convertible(plan, source, sink)
    if wire is None:
        return _refuse(
            RefusalReason.LAYOUT,
            "dtypes",
            [dtype.value for dtype in source.dtypes],
            [dtype.value for dtype in sink.dtypes],
            f"one side must be able to convert between {plan.source.dtype.value} and {plan.target.dtype.value}",
        )
    plan = msgspec.structs.replace(plan, wire=wire)
    segment_bytes = min(source.max_segment_bytes, sink.max_segment_bytes)
    if segment_bytes < plan.token_bytes_per_layer:
        return _refuse(
            RefusalReason.LIMITS,
            "segment_bytes",
            source.max_segment_bytes,
            sink.max_segment_bytes,
            f"one token of one layer has {plan.token_bytes_per_layer} bytes: raise segment_bytes to that at least",
        )
    return Agreement(version, plan, segment_bytes)


def _convertible(plan: CopyPlan, source: Capabilities, sink: Capabilities) -> WireFormat | None:
    """The plan's wire format, or the other side's conversion where the first choice cannot convert."""
    wanted = wire_format(plan.source, plan.target)
    for wire in (wanted, *_alternatives(plan, wanted)):
        if _can(source, plan.source.dtype, wire.dtype) and _can(sink, plan.target.dtype, wire.dtype):
            return wire
    return None


def _alternatives(plan: CopyPlan, wanted: WireFormat) -> tuple[WireFormat, ...]:
    by_target = not wanted.scaled_by_target
    dtype = plan.target.dtype if by_target else plan.source.dtype
    return (WireFormat(dtype, wanted.order, by_target),)


def _can(side: Capabilities, own: KVDType, wire: KVDType) -> bool:
    return own is wire or wire in side.dtypes


def _spoken(side: Capabilities) -> str:
    return f"{side.versions.oldest} to {side.versions.newest}"


def _refuse(reason: RefusalReason, field: str, source: object, sink: object, remedy: str) -> Refusal:
    return Refusal(reason, f"{field!r} is {brief(source)} at the source and {brief(sink)} at the sink; {remedy}", field)
