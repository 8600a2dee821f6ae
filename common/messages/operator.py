"""What the gateway tells and is asked by an operator's tools, over HTTP as JSON."""

from typing import Annotated

import msgspec

from common.costs.shape import StepShape
from common.costs.step import Step
from common.ids import InstanceId
from common.messages.control import Load, Register

MOST_REPEATS = 100
LONGEST_WAIT_S = 3600.0


class InstanceInfo(msgspec.Struct, frozen=True):
    """One member of the mesh: what it registered, and what it held last."""

    member: Register
    load: Load


class InstanceList(msgspec.Struct, frozen=True):
    """The answer of GET /instances, in the order of joining."""

    instances: tuple[InstanceInfo, ...]


class DrainAnswer(msgspec.Struct, frozen=True):
    """The answer of POST /instances/{id}/drain and /resume: the instance has been told. Its next report shows it."""

    instance: InstanceId
    draining: bool


Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class MeasuredShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A StepShape as it stands in a request's body, where nothing can be taken for granted."""

    chunk_tokens: Count = 0
    chunk_context: Count = 0
    decodes: Count = 0
    decode_context: Count = 0


class MeasureRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /instances/{id}/measure."""

    shape: MeasuredShape
    is_prefill: bool = False
    repeats: Annotated[int, msgspec.Meta(ge=1, le=MOST_REPEATS)] = 3
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_WAIT_S)] = 120.0

    def step(self) -> Step:
        """What is to be measured."""
        return Step(StepShape(**msgspec.structs.asdict(self.shape)), self.is_prefill)


class MeasureAnswer(msgspec.Struct, frozen=True):
    """The answer of POST /instances/{id}/measure: seconds of each repetition, in the order measured."""

    seconds: tuple[float, ...]
