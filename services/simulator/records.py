"""What happened to each request of a simulation."""

from dataclasses import dataclass, field

from common.ids import InstanceId


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds of the simulation; None: it has not come to that."""

    arrived_at: float
    prompt_tokens: int
    output_tokens: int
    placed_at: float | None = None
    prefill: InstanceId | None = None
    decode: InstanceId | None = None
    split: int = 0
    predicted_first_token_s: float | None = None
    """From the moment of placing, as the policy predicted it."""
    handed_over_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    failure: str | None = None


@dataclass(slots=True)
class HandoffRecord:
    """One hand-off while it lasts."""

    prefill: InstanceId
    tokens: int
    computing_from: float = 0.0
    computed_at: float | None = None
    reserved_at: float | None = None
    """When D had room for it."""


@dataclass(slots=True)
class Records:
    """Everything that a report is made of."""

    requests: list[RequestRecord] = field(default_factory=list)
    handoffs: dict[int, HandoffRecord] = field(default_factory=dict)
    """Those in progress, by number of the request."""
