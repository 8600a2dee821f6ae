"""Which segment P sends next: not before it is worth it, and everything in the end."""

from hypothesis import given
from hypothesis import strategies as st

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from transfer.plan import plan_copy
from transfer.protocol.giving import Giving
from transfer.protocol.messages import ZonesFreed
from transfer.protocol.negotiation import Agreement

LAYERS, TOKENS = 4, 32
LAYOUT = KVLayout("tiny", KVDType.FLOAT32, 8, KVOrder.NHD, Interval(0, LAYERS), Interval(0, 2), 4)
PLAN = plan_copy(LAYOUT, LAYOUT)
WHOLE = LAYERS * TOKENS * PLAN.token_bytes_per_layer


def giving(segment_bytes: int, *, zones: int = 100) -> Giving:
    return Giving(Agreement(1, PLAN, segment_bytes), Interval(0, TOKENS), zones)


def test_a_layer_that_is_small_beside_a_segment_waits_for_others() -> None:
    # An eighth of a segment is two layers.
    side = giving(2 * 8 * WHOLE // LAYERS)
    assert side.next_segment([TOKENS, 0, 0, 0]) is None
    two = side.next_segment([TOKENS, TOKENS, 0, 0])
    assert two is not None
    assert two.part.layers == Interval(0, 2)
    assert side.next_segment([TOKENS, TOKENS, TOKENS, 0]) is None
    last = side.next_segment([TOKENS] * LAYERS)
    assert last is not None
    assert last.part.layers == Interval(2, 4)


def test_a_layer_that_is_large_beside_a_segment_leaves_at_once() -> None:
    assert giving(WHOLE // LAYERS).next_segment([TOKENS, 0, 0, 0]) is not None


def test_what_is_worth_it_waits_for_a_zone() -> None:
    side = giving(WHOLE // LAYERS, zones=1)
    first = side.next_segment([TOKENS] * LAYERS)
    assert first is not None
    assert side.next_segment([TOKENS] * LAYERS) is None
    side.handle(ZonesFreed((first.zone,)))
    assert side.next_segment([TOKENS] * LAYERS) is not None


@given(st.integers(PLAN.token_bytes_per_layer, 20 * WHOLE), st.lists(st.integers(1, TOKENS), max_size=5))
def test_everything_is_sent_once_it_is_computed(segment_bytes: int, chunks: list[int]) -> None:
    side, sent, ready = giving(segment_bytes, zones=10_000), 0, [0] * LAYERS
    for stop in sorted({*chunks, TOKENS}):
        for layer in range(LAYERS):
            ready[layer] = stop
            while (segment := side.next_segment(ready)) is not None:
                sent += segment.length
    assert sent == WHOLE
