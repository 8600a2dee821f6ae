"""What mesh.yaml says of every instance of a machine."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from common.config.types import EmulateConfig, InstanceConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.planner.files.measured import Measured
from services.planner.files.plan_keys import MachineKeys
from services.simulator.hardware.device import DeviceSpec, Vendor
from services.simulator.hardware.strategy import Strategy

_KINDS: Mapping[Vendor, str] = {Vendor.NVIDIA: "cuda", Vendor.AMD: "rocm"}


def slowdown_of(keys: MachineKeys, measured: Mapping[Strategy, Measured]) -> float:
    """How many times what device or profiles say its steps take. Raises ConfigError for a contradiction.

    `instance.emulate.slowdown` is all that is emulated, and profiles were measured with a part of it.
    """
    already = _already(measured)
    emulate = keys.instance.emulate
    if emulate is UNSET:
        return 1.0 if keys.slowdown is UNSET else keys.slowdown
    factor = emulate.slowdown / already
    if keys.slowdown is not UNSET and keys.slowdown != factor:
        raise ConfigError(
            f"instance.emulate.slowdown is {emulate.slowdown:g}, and slowdown {keys.slowdown:g} times the {already:g} "
            f"that device or profiles have is {keys.slowdown * already:g}; keep one"
        )
    return factor


def template_of(
    keys: MachineKeys, device: DeviceSpec | None, measured: Mapping[Strategy, Measured], kv_memory: int | None
) -> InstanceConfig:
    """The keys of its instances, with what the profiles say of how they were measured.

    `kv_memory`: bytes, where the machine has `kv_tokens`.  Raises ConfigError for a contradiction to the profiles.
    """
    said: dict[str, Any] = msgspec.structs.asdict(keys.instance) | msgspec.structs.asdict(keys.sizes())
    said = {key: value for key, value in said.items() if value is not UNSET}
    said["kv_memory"] = said["kv_memory"] or kv_memory
    if said["kv_memory"] is None:
        del said["kv_memory"]
    emulate = said.get("emulate", EmulateConfig())
    slowdown = slowdown_of(keys, measured) * _already(measured)
    said["emulate"] = msgspec.structs.replace(emulate, slowdown=slowdown)
    said["threads"] = _threads(keys, measured)
    if Strategy() in measured:
        said["profile"] = str(measured[Strategy()].path.absolute())
    kind = "cpu" if device is None else _KINDS.get(device.vendor, "cpu")
    return InstanceConfig(**({"id": InstanceId(keys.name), "role": Role.DECODE, "device": kind} | said))


def _threads(keys: MachineKeys, measured: Mapping[Strategy, Measured]) -> int | None:
    profiled = next((each.profile.threads for each in measured.values()), None)
    wanted = keys.instance.threads
    if wanted is UNSET or wanted is None:
        return profiled
    if profiled is not None and wanted != profiled:
        raise ConfigError(
            f"instance.threads is {wanted}, and its profiles were measured with {profiled}; drop the key, or "
            "profile again"
        )
    return wanted


def _already(measured: Mapping[Strategy, Measured]) -> float:
    """The slowdown that was emulated while profiles were measured."""
    return next((each.profile.slowdown for each in measured.values()), 1.0)
