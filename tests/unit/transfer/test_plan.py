import msgspec
import pytest

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from transfer.errors import LayoutMismatch
from transfer.plan import CopyPlan, plan_copy
from transfer.testing import example_layout


def test_equal_layouts_are_covered_whole() -> None:
    layout = example_layout()
    plan = plan_copy(layout, layout)
    assert (plan.layers, plan.heads) == (layout.layers, (layout.heads,))
    assert plan.payload_bytes(30) == 30 * layout.token_bytes


def test_devices_may_differ() -> None:
    layout = example_layout()
    assert plan_copy(msgspec.structs.replace(layout, device="cuda:0"), layout).layers == layout.layers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "other"),
        ("dtype", KVDType.BFLOAT16),
        ("block_size", 16),
        ("order", KVOrder.HND),
        ("layers", Interval(0, 4)),
        ("heads", Interval(0, 1)),
        ("head_dim", 64),
        ("packed", True),
    ],
)
def test_a_mismatch_names_the_field_and_both_values(field: str, value: object) -> None:
    ours = example_layout()
    with pytest.raises(LayoutMismatch) as mismatch:
        plan_copy(ours, msgspec.structs.replace(ours, **{field: value}))
    assert mismatch.value.field == field
    for part in (repr(field), repr(value), repr(getattr(ours, field))):
        assert part in str(mismatch.value)


@pytest.mark.parametrize(
    "heads",
    [(), (Interval(0, 1),), (Interval(0, 1), Interval(0, 2)), (Interval(1, 2),), (Interval(0, 3),)],
    ids=["nothing", "short", "twice", "late", "beyond"],
)
def test_a_plan_that_does_not_cover_exactly_cannot_be_made(heads: tuple[Interval, ...]) -> None:
    layout = example_layout()
    with pytest.raises(ValueError, match="cover"):
        CopyPlan(source=layout, target=layout, layers=layout.layers, heads=heads)
    with pytest.raises(ValueError, match="layers"):
        CopyPlan(source=layout, target=layout, layers=Interval(2, 5), heads=(layout.heads,))
