"""Two decode instances, one of them made slower, as meshes of this machine: under each policy, and each by itself."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from common.config.types import EmulateConfig, GatewayConfig, InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.messages.control import Role
from services.simulator.workload.requests import TracedRequest, Workload

FAST: Final = InstanceId("fast")
SLOW: Final = InstanceId("slow")
_LARGEST_SHARE: Final = 0.0185
"""Of the makespan, that one request takes on the slow instance: so uneven may the end of a run be."""


class PairSettings(msgspec.Struct, frozen=True):
    """What all meshes of the pair have in common.

    A small batch and short answers: the requests that are left when the queue is empty are decoded by ever smaller
    batches, and that should be a small part of a run.
    """

    model: str
    dtype: str = "bfloat16"
    cores: tuple[int, int] = (0, 1)
    """Of the fast instance and of the slow one."""
    max_batch: int = 6
    budget: int = 256
    kv_memory: str = "256MiB"
    prompt_tokens: int = 64
    output_tokens: int = 12

    @property
    def request_tokens(self) -> int:
        """Of prompt and answer."""
        return self.prompt_tokens + self.output_tokens

    def workload(self, requests: int) -> Workload:
        """So many requests of one size, all at once: under such a load the ceiling can be reached."""
        one = TracedRequest(0.0, self.prompt_tokens, self.output_tokens)
        return Workload(
            name=f"{self.prompt_tokens}+{self.output_tokens}",
            source="requests of one size",
            requests=(one,) * requests,
            arrivals="all at once",
        )


def requests_for(slowdown: float) -> int:
    """An even number: so many that one takes the slow instance a small share of the makespan.

    With rates c and c/k of both, n requests take n / (c + c/k) seconds at best and one takes k/c: a share of (1 + k)/n.
    """
    return 2 * math.ceil((1.0 + slowdown) / _LARGEST_SHARE / 2)


def pair_config(
    settings: PairSettings,
    policy: str,
    slowdown: float,
    profiles: Mapping[InstanceId, Path],
    names: Sequence[InstanceId] = (FAST, SLOW),
    queue: int = 4096,
) -> MeshConfig:
    """The mesh of the instances `names` under `policy`; `profiles` are those of the instances that have one."""
    gateway = GatewayConfig(http="127.0.0.1:0", control="tcp://127.0.0.1:0", queue=queue, deadline_s=3600.0)
    instances = [_instance(settings, name, slowdown, profiles.get(name)) for name in names]
    keys = {
        "model": settings.model,
        "dtype": settings.dtype,
        "policy": policy,
        "log_level": "warning",
        "gateway": msgspec.to_builtins(gateway),
        "instances": [msgspec.to_builtins(instance) for instance in instances],
    }
    return msgspec.convert(keys, MeshConfig)


def _instance(settings: PairSettings, name: InstanceId, slowdown: float, profile: Path | None) -> InstanceConfig:
    return InstanceConfig(
        id=name,
        role=Role.DECODE,
        threads=1,
        cpu_affinity=(settings.cores[0 if name == FAST else 1],),
        kv_memory=settings.kv_memory,
        max_batch=settings.max_batch,
        budget=settings.budget,
        profile=None if profile is None else str(profile),
        prefix_cache=False,  # the rounds send the same prompts
        emulate=EmulateConfig(slowdown=1.0 if name == FAST else slowdown),
    )
