import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from transfer.errors import RefusalReason
from transfer.plan import region_of
from transfer.protocol.messages import SPOKEN, Accepted, Capabilities, Refusal, sink_codec
from transfer.protocol.negotiation import Agreement, agree
from transfer.protocol.versions import VersionRange
from transfer.testing import example_layout, example_limits
from transfer.workshop import capabilities_of


def side(**changes: object) -> Capabilities:
    """A side of today; changes go to its capabilities or to its layout."""
    layout = example_layout()
    of_layout = {name: changes.pop(name) for name in layout.__struct_fields__ if name in changes}
    right = capabilities_of(msgspec.structs.replace(layout, **of_layout), example_limits())
    return msgspec.structs.replace(right, **changes)


def outcome(source: Capabilities, sink: Capabilities) -> Agreement | Refusal:
    return agree(source, sink, region_of(sink.layout))


def agreed(source: Capabilities, sink: Capabilities) -> Agreement:
    found = outcome(source, sink)
    assert isinstance(found, Agreement), found
    return found


@pytest.mark.parametrize(
    ("source", "sink", "version"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((4, 6), (2, 4), 4), ((1, 2), (3, 4), None), ((5, 5), (1, 4), None)],
)
def test_the_newest_version_that_both_speak(
    source: tuple[int, int], sink: tuple[int, int], version: int | None
) -> None:
    found = outcome(side(versions=VersionRange(*source)), side(versions=VersionRange(*sink)))
    if version is not None:
        assert isinstance(found, Agreement)
        assert found.version == version
        return
    assert isinstance(found, Refusal)
    assert (found.reason, found.field) == (RefusalReason.WIRE_VERSION, "versions")
    for spoken in (source, sink):
        assert f"{spoken[0]} to {spoken[1]}" in found.message


@given(
    ranges=st.tuples(*[st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)] * 2),
)
def test_versions_overlap_or_do_not(ranges: tuple[list[int], list[int]]) -> None:
    ours, theirs = (VersionRange(*both) for both in ranges)
    spoken = set(range(ours.oldest, ours.newest + 1)) & set(range(theirs.oldest, theirs.newest + 1))
    assert ours.common_with(theirs) == theirs.common_with(ours) == (max(spoken) if spoken else None)


def test_the_narrower_side_decides_and_the_other_casts() -> None:
    wide, narrow = side(), side(dtype=KVDType.BFLOAT16)
    assert agreed(wide, narrow).casting_side == "source"
    assert agreed(narrow, wide).casting_side == "sink"
    assert agreed(wide, wide).casting_side == "nobody"
    assert agreed(wide, narrow).plan.wire.dtype is agreed(narrow, wide).plan.wire.dtype is KVDType.BFLOAT16


def test_who_cannot_cast_leaves_it_to_the_other() -> None:
    wide = side(dtypes=(KVDType.FLOAT32,))
    narrow = side(dtype=KVDType.BFLOAT16)
    assert agreed(wide, narrow).casting_side == "sink"
    assert agreed(wide, narrow).plan.wire.dtype is KVDType.FLOAT32
    neither = outcome(wide, side(dtype=KVDType.BFLOAT16, dtypes=()))
    assert isinstance(neither, Refusal)
    assert neither.field == "dtypes"
    for word in ("float32", "bfloat16"):
        assert word in neither.message


@pytest.mark.parametrize(
    ("change", "field"),
    [({"model": "other"}, "model"), ({"head_dim": 4}, "head_dim"), ({"heads": Interval(1, 9)}, "heads")],
)
def test_a_refusal_names_the_field_both_values_and_what_would_work(change: dict[str, object], field: str) -> None:
    source, sink = side(), side(**change)
    found = outcome(source, sink)
    assert isinstance(found, Refusal)
    assert found.field == field
    for layout in (source.layout, sink.layout):
        assert repr(getattr(layout, field)) in found.message
    assert len(found.message.rpartition("; ")[2]) > 10


@pytest.mark.parametrize("change", [{"block_size": 64}, {"order": KVOrder.HND}, {"packed": True}, {"device": "cuda"}])
def test_what_can_be_translated_is_agreed_on(change: dict[str, object]) -> None:
    assert agreed(side(), side(**change)).version == SPOKEN.newest


def test_segments_must_hold_a_token_of_a_layer() -> None:
    assert agreed(side(max_segment_bytes=512), side()).segment_bytes == 512
    found = outcome(side(max_segment_bytes=100), side())
    assert isinstance(found, Refusal)
    assert (found.reason, found.field) == (RefusalReason.LIMITS, "segment_bytes")
    assert "128 bytes" in found.message


def test_an_older_reader_skips_what_a_newer_peer_adds() -> None:
    """And a cache that needs what the older one does not know is not taken for another."""
    body = msgspec.to_builtins(Accepted(side(), 1, 1024, KVDType.FLOAT32))
    body["capabilities"]["colour"] = "green"
    body["mood"] = "fine"
    message = sink_codec().decode(msgspec.msgpack.encode((1, body)))
    assert message == Accepted(side(), 1, 1024, KVDType.FLOAT32)
    body["capabilities"]["layout"]["twisted"] = True
    with pytest.raises(Exception, match="twisted"):
        sink_codec().decode(msgspec.msgpack.encode((1, body)))
