import msgspec
import pytest

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVKind, KVOrder
from common.kv.wire import WireFormat, wire_format
from transfer.errors import LayoutMismatch
from transfer.plan import CopyPlan, Region, plan_copy, region_of
from transfer.testing import example_layout


def test_equal_layouts_are_covered_whole() -> None:
    layout = example_layout()
    plan = plan_copy(layout, layout)
    assert plan.region == region_of(layout)
    assert plan.payload_bytes(30) == 30 * layout.token_bytes


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cuda:0"},
        {"block_size": 7},
        {"order": KVOrder.HND},
        {"dtype": KVDType.FLOAT8_E4M3FN},
        {"packed": True},
        {"layers": Interval(3, 5)},
        {"heads": Interval(1, 2)},
    ],
)
def test_whatever_can_be_translated_is(change: dict[str, object]) -> None:
    source = example_layout()
    target = msgspec.structs.replace(source, **change)
    assert plan_copy(source, target).region == region_of(target)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "other"),
        ("layers", Interval(0, 4)),
        ("heads", Interval(0, 3)),
        ("head_dim", 64),
    ],
)
def test_a_mismatch_names_the_field_both_values_and_a_remedy(field: str, value: object) -> None:
    ours = example_layout()
    with pytest.raises(LayoutMismatch, match=r"; \w") as mismatch:
        plan_copy(ours, msgspec.structs.replace(ours, **{field: value}))
    assert mismatch.value.field == field
    for part in (repr(field), repr(value), repr(getattr(ours, field))):
        assert part in str(mismatch.value)


def test_a_latent_is_not_keys_and_values() -> None:
    heads = msgspec.structs.replace(example_layout(), heads=Interval(0, 1))
    latent = msgspec.structs.replace(heads, kind=KVKind.LATENT)
    assert plan_copy(latent, latent).token_bytes_per_layer * 2 == plan_copy(heads, heads).token_bytes_per_layer
    with pytest.raises(LayoutMismatch) as mismatch:
        plan_copy(latent, heads)
    assert mismatch.value.field == "kind"
    with pytest.raises(ValueError, match="one head"):
        msgspec.structs.replace(example_layout(), kind=KVKind.LATENT)


@pytest.mark.parametrize(
    "region",
    [
        Region(Interval(2, 2), Interval(0, 2)),
        Region(Interval(2, 6), Interval(0, 3)),
        Region(Interval(1, 6), Interval(0, 2)),
    ],
    ids=["nothing", "heads beyond", "layers before"],
)
def test_a_plan_for_what_a_side_does_not_hold_cannot_be_made(region: Region) -> None:
    layout = example_layout()
    with pytest.raises(ValueError, match="cover"):
        CopyPlan(layout, layout, region, wire_format(layout, layout))
    with pytest.raises(LayoutMismatch):
        plan_copy(layout, layout, region)


@pytest.mark.parametrize(
    ("source", "target", "wire"),
    [
        (KVDType.FLOAT32, KVDType.BFLOAT16, WireFormat(KVDType.BFLOAT16, KVOrder.NHD, scaled_by_target=True)),
        (KVDType.BFLOAT16, KVDType.FLOAT32, WireFormat(KVDType.BFLOAT16, KVOrder.NHD, scaled_by_target=False)),
        (KVDType.BFLOAT16, KVDType.FLOAT16, WireFormat(KVDType.BFLOAT16, KVOrder.NHD, scaled_by_target=False)),
        (KVDType.FLOAT8_E4M3FN, KVDType.FLOAT32, WireFormat(KVDType.FLOAT8_E4M3FN, KVOrder.NHD, False)),
    ],
)
def test_the_narrower_type_travels(source: KVDType, target: KVDType, wire: WireFormat) -> None:
    layout = example_layout()
    ends = [msgspec.structs.replace(layout, dtype=dtype) for dtype in (source, target)]
    assert wire_format(*ends) == wire


def test_scales_fit_their_layout() -> None:
    layout = example_layout(dtype=KVDType.FLOAT8_E4M3FN)
    assert msgspec.structs.replace(layout, scales=bytes(4 * 4 * 2 * 2)).scales
    with pytest.raises(ValueError, match="64"):
        msgspec.structs.replace(layout, scales=bytes(12))
