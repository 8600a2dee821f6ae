"""The clusters of the tables, as plan files."""

from collections.abc import Sequence

import msgspec

from services.planner.files.plan_keys import HostLinkKeys, LimitKeys, MachineKeys, PlanKeys, WorkloadKeys
from services.planner.request import Objective

CHAT, PREFILL_HEAVY, DECODE_HEAVY = "azure_conv_first1000", "prefill_heavy", "decode_heavy"
"""Built-in shapes of lengths (docs/data.md)."""
MAX_BATCH = 64
"""Sequences of one instance: with 256, a simulation needs four times the requests to get to its steady state."""
LINK_GBIT_PER_S = 400.0
"""Of each machine."""
LIMITS = LimitKeys(ttft_p99_s=4.0, tpot_p99_s=0.1)
TIGHT = LimitKeys(ttft_p99_s=2.0, tpot_p99_s=0.03)
"""Steps of 512 tokens take longer than this TPOT on most devices: prompts beside decodes cost dearly."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of device and what it costs."""

    device: str
    """A name of the catalogue."""
    price: float
    """Per hour and device."""

    @property
    def pool(self) -> str:
        """A name for its machines."""
        return "-".join(self.device.lower().split())


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two kinds of devices, from one price list, and what they serve together."""

    first: Kind
    second: Kind
    prices: str
    """Where the prices are from."""
    model: str
    shape: str = CHAT

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.first.device} + {self.second.device}"


_A800, _H20 = Kind("A800 80GB SXM", 1.5), Kind("H20", 1.5)
_NO_LIST = "equal, as no list has both"
PAIRS = (
    Pair(first=_A800, second=_H20, prices=_NO_LIST, model="LLaMA3-8B"),
    Pair(first=_A800, second=_H20, prices=_NO_LIST, model="Qwen2.5-32B"),
    Pair(first=Kind("A100 40GB SXM", 3.67), second=Kind("L4", 0.70), prices="gcp", model="LLaMA3-8B"),
    Pair(first=Kind("H100 SXM", 1.50), second=Kind("MI300X", 1.34), prices="tco", model="Qwen2.5-72B"),
)
"""Prices as in docs/devices.md."""
LISTED = PAIRS[2:]
"""Those that a price list has."""


def machines(kind: Kind, count: int, devices: int = 8, *, pool: str | None = None) -> MachineKeys:
    """`count` machines of `devices` each, named after the device or `pool`."""
    return MachineKeys(
        name=pool or kind.pool,
        device=kind.device,
        count=count,
        devices=devices,
        price=devices * kind.price,
        host_link=HostLinkKeys(gbit_per_s=LINK_GBIT_PER_S),
        max_batch=MAX_BATCH,
    )


def plan_keys(
    model: str,
    of: Sequence[MachineKeys],
    objective: Objective,
    *,
    shape: str = CHAT,
    limits: LimitKeys = LimitKeys(),
    rate: float | None = None,
    budget: float | None = None,
    seed: int = 0,
) -> PlanKeys:
    """A plan file for `model` on machines `of`."""
    return PlanKeys(
        model=model,
        machines=tuple(of),
        workload=WorkloadKeys(trace=f"synthetic:{shape}", seed=seed),
        limits=limits,
        objective=objective,
        rate=rate,
        budget=budget,
    )
