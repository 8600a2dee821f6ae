"""Deployments: how many instances of which kind on which machines, and how requests are spread over them."""

from enum import StrEnum

import msgspec

from common.messages.control import Role
from services.simulator.hardware.strategy import Strategy


class Serving(StrEnum):
    """How a prompt is divided between instances."""

    AGGREGATED = "aggregated"
    """Every instance computes whole requests (policy capacity, no prefill instances)."""
    DISAGGREGATED = "disaggregated"
    """A prefill instance computes the whole prompt (policy disagg)."""
    CRONUS = "cronus"
    """A prefill instance computes as much of a prompt as keeps both busy (policy cronus)."""


class Option(msgspec.Struct, frozen=True):
    """One way to use some devices of a pool: an instance of a role. Seconds are of instance time per mean request, each
    divided by the utilisation that the limits allow, so that n instances sustain n / seconds requests per second.
    """

    pool: str
    role: Role
    strategy: Strategy
    price: float = 0.0
    """Per hour, of all its devices."""
    prefill_s: float = 0.0
    """P: a whole prompt."""
    decode_s: float = 0.0
    """D: an answer whose prompt was computed elsewhere."""
    whole_s: float = 0.0
    """D: prompt and answer; at least `decode_s`, infinite where it cannot within the limits."""
    batch: int | None = None
    """D: most sequences at once that keep the limits, for mesh.yaml's max_batch; None: as many as the pool allows."""

    @property
    def devices(self) -> int:
        """Of the pool, taken by one instance."""
        return self.strategy.devices


class Group(msgspec.Struct, frozen=True):
    """`count` instances of an option."""

    option: Option
    count: int


class Plan(msgspec.Struct, frozen=True):
    """A deployment with what the closed forms say of it."""

    serving: Serving
    groups: tuple[Group, ...]
    """Of at least one instance each, ordered by pool, role and strategy."""
    rate_rps: float
    """Requests per second that it sustains within the limits that its options were made for."""

    @property
    def price(self) -> float:
        """Per hour."""
        return sum(group.count * group.option.price for group in self.groups)

    @property
    def needs_ranks(self) -> bool:
        """Whether an instance spans several devices, which can be planned and simulated but not run yet."""
        return any(group.option.devices > 1 for group in self.groups)

    def instances(self, role: Role) -> int:
        """How many of a role."""
        return sum(group.count for group in self.groups if group.option.role is role)
