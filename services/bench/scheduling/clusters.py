"""The simulated clusters on which schedulers are compared: two machines, and four types."""

from collections.abc import Callable

import msgspec

from common.config.types import DType
from common.messages.control import Role
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.memory import kv_capacity_tokens
from services.simulator.hardware.models import ModelSpec, find_model
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.slowed import SlowedTimer
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.links import LinkSpec

MODEL = "LLaMA3-8B"
DTYPE: DType = "float16"
BUDGET = 512
MAX_BATCH = 32
RATIOS = (3.45, 1.67)
"""Fast to slow: with these, mean(c) / min(c) - 1 is 122.5 % and 33.5 %, the two gains that Xiong et al. report."""
FOUR_TYPES = ("H100 SXM", "A100 80GB SXM", "L40S", "A10")
PER_TYPE = 2

Rooms = Callable[[int, int], int]
"""(place, instances of the cluster) → tokens of KV of that instance under some load, but at most its own."""


class SchedulerCluster(msgspec.Struct, frozen=True):
    """Decode instances of unlike speed, the fastest first; they register costs fitted to their step times."""

    key: str
    """In the summary."""
    name: str
    instances: tuple[SimulatedInstance, ...]
    model: ModelSpec

    def cluster(self) -> Cluster:
        """All of it."""
        return self._of(self.instances)

    def alone(self) -> tuple[Cluster, ...]:
        """Each instance by itself."""
        return tuple(self._of((instance,)) for instance in self.instances)

    def with_rooms(self, rooms: Rooms) -> "SchedulerCluster":
        """The same with so much room for KV."""
        instances = tuple(
            msgspec.structs.replace(instance, kv_tokens=min(instance.kv_tokens, rooms(place, len(self.instances))))
            for place, instance in enumerate(self.instances)
        )
        return msgspec.structs.replace(self, instances=instances)

    def _of(self, instances: tuple[SimulatedInstance, ...]) -> Cluster:
        link = LinkSpec(12.5e9)
        return Cluster(instances, self.model.layers, self.model.kv_bytes_per_token(DTYPE), link)


def scheduler_clusters(catalogue: Catalogue) -> tuple[SchedulerCluster, ...]:
    """Two machines at each of RATIOS, and eight of four types."""
    return (*(two_machines(catalogue, ratio) for ratio in RATIOS), four_types(catalogue))


def two_machines(catalogue: Catalogue, ratio: float) -> SchedulerCluster:
    """A device of the catalogue, and one whose steps take `ratio` times as long: their rates have just this ratio."""
    fast = _instance(catalogue, FOUR_TYPES[1], "fast")
    assert fast.costs is not None
    slow = msgspec.structs.replace(
        fast, name="slow", timer=SlowedTimer(fast.timer, ratio), costs=fast.costs.scaled(ratio)
    )
    return SchedulerCluster(f"{ratio:g}", f"two machines, {ratio:g} to 1", (fast, slow), find_model(MODEL))


def four_types(catalogue: Catalogue) -> SchedulerCluster:
    """PER_TYPE instances of each of FOUR_TYPES."""
    instances = tuple(
        _instance(catalogue, device, f"{device.split()[0].lower()}-{number}")
        for device in FOUR_TYPES
        for number in range(PER_TYPE)
    )
    return SchedulerCluster("four_types", "eight machines of four types", instances, find_model(MODEL))


def _instance(catalogue: Catalogue, device_name: str, name: str) -> SimulatedInstance:
    device, model = catalogue.device(device_name), find_model(MODEL)
    return SimulatedInstance(
        name=name,
        role=Role.DECODE,
        timer=RooflineTimer(device, model, DTYPE),
        kv_tokens=kv_capacity_tokens(device, model, DTYPE),
        costs=spec_profile(device, model, DTYPE, BUDGET, max_batch=MAX_BATCH).costs,
        budget=BUDGET,
        max_batch=MAX_BATCH,
    )
