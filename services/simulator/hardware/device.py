"""One device: its figures, each with where it comes from."""

import math
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from common.config.types import DType
from common.errors import ConfigError

RECALLED = "recalled"
ESTIMATED = "estimated"
"""The two source keys that are not a publication: a figure out of memory, and one of our own."""


class Vendor(StrEnum):
    """Who makes a device."""

    NVIDIA = "NVIDIA"
    AMD = "AMD"
    HUAWEI = "Huawei"
    INTEL = "Intel"
    OTHER = "other"
    """Of devices that users describe."""


class Figure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A number with its source: in the device files `[value, "source", "note"]`, the note where it needs one."""

    value: float
    source: str
    """A key of the catalogue's sources."""
    note: str = ""

    @property
    def is_recalled(self) -> bool:
        """Whether it was written down from memory and not looked up."""
        return self.source == RECALLED

    @property
    def is_estimated(self) -> bool:
        """Whether it is our own estimate, for want of a published measurement."""
        return self.source == ESTIMATED


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator, or a CPU, as software sees it: a module of two dies is two devices.

    Link rates are in GB/s (1e9 bytes) in one direction, 0 where there is none.
    """

    name: str
    vendor: Vendor
    fp16_tflops: Figure
    """Published dense rate of 16-bit matrix products with sums in fp32, in 1e12 operations per second."""
    memory_mib: Figure
    """What the driver offers to a process: less than the nominal size."""
    memory_gb_s: Figure
    """Published bandwidth of its memory."""
    interconnect: str
    interconnect_gb_s: Figure
    """To devices like it in the same host."""
    host_link: str
    host_link_gb_s: Figure
    tdp_w: Figure
    compute_efficiency: Figure
    """Share of the published rate that prompts reach, end to end."""
    memory_efficiency: Figure
    """Share of the published bandwidth that decode steps reach."""
    step_overhead_ms: Figure
    """What a step takes beside the device's own work: a trait of the engine more than of the device."""
    interconnect_devices: int | None = None
    """Most devices that the interconnect joins: 2 for bridges; null: all of a host."""
    aliases: tuple[str, ...] = ()
    bf16: bool = True
    prices: dict[str, Figure] = {}
    """US$ per hour by price list. Lists differ by factors of three: compare within one."""

    @property
    def flops(self) -> float:
        """Effective operations per second: the published rate times the compute efficiency."""
        return self.fp16_tflops.value * 1e12 * self.compute_efficiency.value

    @property
    def bytes_per_s(self) -> float:
        """Effective bytes per second from its memory."""
        return self.memory_gb_s.value * 1e9 * self.memory_efficiency.value

    @property
    def memory_bytes(self) -> int:
        """Bytes that the driver offers."""
        return int(self.memory_mib.value * 2**20)

    @property
    def step_overhead_s(self) -> float:
        """Seconds of a step beside the device's own work."""
        return self.step_overhead_ms.value / 1e3

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every figure, by the name of its field ("prices.LIST" for a price)."""
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if isinstance(value, Figure):
                yield field, value
        for prices, price in self.prices.items():
            yield f"prices.{prices}", price

    def price(self, prices: str) -> float | None:
        """US$ per hour in the price list `prices`, where it is in it."""
        figure = self.prices.get(prices)
        return None if figure is None else figure.value

    def require_dtype(self, dtype: DType) -> None:
        """Raise ConfigError for a dtype whose step times do not follow from these figures."""
        if dtype == "float32":
            raise ConfigError(
                f"dtype 'float32' on {self.name}: only 16-bit rates are known of devices; use float16 or bfloat16, "
                "or measure the instance with `pdmesh profile`"
            )
        if dtype == "bfloat16" and not self.bf16:
            raise ConfigError(
                f"{self.name} cannot compute in bfloat16; give its instances dtype float16 (KV from a bfloat16 "
                "instance is cast on the way), or use another device"
            )

    def assuming(
        self,
        *,
        compute_efficiency: float | None = None,
        memory_efficiency: float | None = None,
        step_overhead_s: float | None = None,
    ) -> "DeviceSpec":
        """The same device with other efficiencies (in (0, 1]) or another overhead: for sweeps of what is not known."""
        given = {
            "compute_efficiency": compute_efficiency,
            "memory_efficiency": memory_efficiency,
            "step_overhead_ms": None if step_overhead_s is None else step_overhead_s * 1e3,
        }
        assumed = {
            field: Figure(value, ESTIMATED, "assumed by the caller")
            for field, value in given.items()
            if value is not None
        }
        changed = msgspec.structs.replace(self, **assumed)
        check_device(changed)
        return changed


def check_device(device: DeviceSpec) -> None:
    """Raise ConfigError where a figure cannot be one: figures that divide must be above 0, efficiencies at most 1."""
    joined = device.interconnect_devices
    if joined is not None and joined < 2:
        raise ConfigError(f"interconnect_devices of {device.name} is {joined!r}; it joins at least 2, or leave it out")
    for field, figure in device.figures():
        value = figure.value
        may_be_zero = field in {"interconnect_gb_s", "step_overhead_ms"} or field.startswith("prices.")
        is_share = field.endswith("_efficiency")
        if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero) or (value > 1 and is_share):
            raise ConfigError(
                f"{field} of {device.name} is {value!r}; it must be "
                f"{'0 or more' if may_be_zero else 'above 0'}{' and at most 1' if is_share else ''}"
            )
