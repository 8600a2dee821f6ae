"""The four systems that are compared on two unlike devices, as meshes of this machine."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from common.config.types import EmulateConfig, GatewayConfig, InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.messages.control import Role


class System(StrEnum):
    """What is compared."""

    CRONUS = "cronus"
    DP = "dp_tuned"
    LOW_HIGH = "low_high"
    HIGH_LOW = "high_low"


POLICY_OF: Mapping[System, str] = {
    System.CRONUS: "cronus",
    System.DP: "dp",
    System.LOW_HIGH: "disagg",
    System.HIGH_LOW: "disagg",
}


class Devices(msgspec.Struct, frozen=True):
    """A fast and a slow device: one core each, the slow one made slower on purpose."""

    model: str
    dtype: str = "bfloat16"
    slowdown: float = 3.0
    fast_core: int = 0
    slow_core: int = 1
    max_batch: int = 16
    budget: int = 256
    kv_memory: str = "512MiB"


def mesh_of(
    system: System, devices: Devices, profiles: Mapping[str, Path], *, dp_weight: float = 0.75, queue: int = 4096
) -> MeshConfig:
    """The mesh of a system. `profiles` has the files of "fast" and "slow"; `dp_weight` is the fast one's share."""
    high_role = Role.PREFILL if system is System.HIGH_LOW else Role.DECODE
    low_role = Role.PREFILL if system in (System.CRONUS, System.LOW_HIGH) else Role.DECODE
    high = _instance("high", high_role, devices, profiles, is_fast=True, weight=dp_weight)
    low = _instance("low", low_role, devices, profiles, is_fast=False, weight=1.0 - dp_weight)
    gateway = GatewayConfig(http="127.0.0.1:0", control="tcp://127.0.0.1:0", queue=queue, deadline_s=3600.0)
    return msgspec.convert(
        {
            "model": devices.model,
            "dtype": devices.dtype,
            "policy": POLICY_OF[system],
            "gateway": msgspec.to_builtins(gateway),
            "log_level": "warning",
            "instances": [msgspec.to_builtins(high), msgspec.to_builtins(low)],
        },
        MeshConfig,
    )


def _instance(
    name: str, role: Role, devices: Devices, profiles: Mapping[str, Path], *, is_fast: bool, weight: float
) -> InstanceConfig:
    file = profiles.get("fast" if is_fast else "slow")
    return InstanceConfig(
        id=InstanceId(name),
        role=role,
        threads=1,
        cpu_affinity=(devices.fast_core if is_fast else devices.slow_core,),
        kv_memory=devices.kv_memory,
        max_batch=devices.max_batch,
        budget=devices.budget,
        profile=None if file is None else str(file),
        weight=weight,
        prefix_cache=False,  # the rounds send the same prompts
        emulate=EmulateConfig(slowdown=1.0 if is_fast else devices.slowdown),
    )
