"""Whatever comes, a codec gives a message or says that there is none."""

import msgspec
import pytest

from common.errors import MalformedMessage
from common.kv.intervals import LARGEST, Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.codec import Codec

LAYOUT = KVLayout("tiny", KVDType.FLOAT32, 8, KVOrder.NHD, Interval(0, 4), Interval(0, 2), 4)


class Said(msgspec.Struct, frozen=True, tag=True):
    """A message with a layout."""

    layout: KVLayout


class Fragile(msgspec.Struct, frozen=True, tag=True):
    """A message whose constructor is not careful with what peers say."""

    divisor: int

    def __post_init__(self) -> None:
        1 // self.divisor


def frame(**changes: object) -> bytes:
    layout = msgspec.to_builtins(LAYOUT, builtin_types=(bytes,)) | changes
    return msgspec.msgpack.encode((1, {"type": "Said", "layout": layout}))


def test_a_layout_comes_through() -> None:
    assert Codec(Said, 1).decode(frame()) == Said(LAYOUT)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": [0, 1 << 63], "scales": b"1234"},
        {"heads": [0, (1 << 64) - 1], "scales": b"1234"},
        {"layers": [0, LARGEST + 1]},
        {"layers": [3, 2]},
        {"block_size": 0},
        {"block_size": (1 << 64) - 1},
        {"head_dim": -4},
    ],
    ids=str,
)
def test_no_number_in_a_layout_breaks_a_codec(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        Codec(Said, 1).decode(frame(**changes))


def test_whatever_a_constructor_raises_is_a_malformed_message() -> None:
    with pytest.raises(MalformedMessage, match="division"):
        Codec(Fragile, 1).decode(msgspec.msgpack.encode((1, {"type": "Fragile", "divisor": 0})))


def test_another_version_is_said_in_words() -> None:
    with pytest.raises(MalformedMessage, match="this side speaks 2"):
        Codec(Said, 2).decode(frame())


@pytest.mark.parametrize(("start", "stop"), [(0, LARGEST + 1), (-1, 2), (2, 1), (LARGEST + 1, LARGEST + 2)])
def test_intervals_are_bounded(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not an interval"):
        Interval(start, stop)
    assert len(Interval(0, LARGEST)) == LARGEST
