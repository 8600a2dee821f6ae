"""A step as the cost models tell steps apart."""

import msgspec

from common.costs.models import InstanceCosts
from common.costs.shape import StepShape


class Step(msgspec.Struct, frozen=True):
    """What was, or is to be, computed in one forward."""

    shape: StepShape
    is_prefill: bool = False
    """One whole prompt, alone, on a prefill instance: what T_pre is about. A decode instance mixes, even one prompt."""

    def seconds(self, costs: InstanceCosts) -> float:
        """What it takes by `costs`."""
        return costs.prefill.seconds(self.shape.chunk_tokens) if self.is_prefill else costs.step_seconds(self.shape)
