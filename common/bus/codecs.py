"""The codecs of the control plane, one for each direction."""

from typing import Any, cast

from common.messages.codec import Codec
from common.messages.control import WIRE_VERSION, FromWorker, ToWorker

# The type checker has no name for "the type of a union's members"; msgspec takes the union itself.


def from_worker_codec() -> Codec[FromWorker]:
    """Frames that workers send to the gateway."""
    return Codec[FromWorker](cast(Any, FromWorker), WIRE_VERSION)


def to_worker_codec() -> Codec[ToWorker]:
    """Frames that the gateway sends to workers."""
    return Codec[ToWorker](cast(Any, ToWorker), WIRE_VERSION)
