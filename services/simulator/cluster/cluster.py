"""What is simulated: instances with their time models, and the links between them."""

import msgspec

from common.costs.models import InstanceCosts
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import Role
from services.simulator.engine.timing import StepTimer
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineSpec


class SimulatedInstance(msgspec.Struct, frozen=True):
    """One instance: the truth about it (`timer`), and what it says of itself (`costs`)."""

    name: str
    role: Role
    timer: StepTimer
    kv_tokens: int
    """Tokens that its KV memory holds."""
    costs: InstanceCosts | None = None
    budget: int | None = None
    """Tokens per step (decode); tokens of one chunk (prefill; None: a prompt is one step)."""
    max_batch: int = 256
    block_size: int = 16
    weight: float | None = None
    pipeline: PipelineSpec | None = None
    """Its layers are split among devices, of which `timer` is of the first; `budget` is of a micro-batch."""


class Cluster(msgspec.Struct, frozen=True):
    """Instances that serve one model. Every prefill instance sends its KV over a link of its own."""

    instances: tuple[SimulatedInstance, ...]
    layers: int
    kv_bytes_per_token: int
    link: LinkSpec
    is_link_known: bool = True
    """Whether the gateway is told how fast the links are."""

    def layout(self, instance: SimulatedInstance) -> KVLayout:
        """A layout with the right bytes per token; its heads are not the model's."""
        bytes_per_part = self.kv_bytes_per_token // self.layers // 2
        return KVLayout(
            model="simulated",
            dtype=KVDType.BFLOAT16,
            block_size=instance.block_size,
            order=KVOrder.NHD,
            layers=Interval(0, self.layers),
            heads=Interval(0, 1),
            head_dim=bytes_per_part // 2,
        )
