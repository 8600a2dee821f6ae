"""Figures of workers that nobody could add up are refused as no messages at all."""

from typing import Any

import msgspec
import pytest

from common.bus.codecs import from_worker_codec
from common.errors import MalformedMessage
from common.ids import Generation, InstanceId, RequestId
from common.messages.control import FromWorker, Heartbeat, KVLanded, LinkFigures, LinkMeasured, Load, PrefixReused

D0, LIFE, R = InstanceId("d0"), Generation(1), RequestId("r")
LANDED = KVLanded(D0, LIFE, R, 768, 0.1, "tcp", "nobody")


def changed(message: Any, **fields: Any) -> FromWorker:
    return msgspec.structs.replace(message, **fields)  # replaces without a look at the bounds


@pytest.mark.parametrize(
    "message",
    [
        changed(LANDED, payload_bytes=-1),
        changed(LANDED, seconds=-0.1),
        changed(LANDED, seconds=float("nan")),
        changed(LANDED, first_byte_s=float("inf")),
        PrefixReused(D0, LIFE, R, -1),
        Heartbeat(D0, LIFE, Load(tokens=-1)),
        Heartbeat(D0, LIFE, Load(cost_factor=float("nan"))),
        LinkMeasured(D0, LIFE, InstanceId("p0"), LIFE, (LinkFigures("tcp", 0.0, 0.1),)),
    ],
)
def test_a_figure_out_of_bounds_is_malformed(message: FromWorker) -> None:
    codec = from_worker_codec()
    assert codec.decode(codec.encode(LANDED)) == LANDED
    with pytest.raises(MalformedMessage):
        codec.decode(codec.encode(message))
