"""What happened to each request of a simulation."""

from dataclasses import dataclass

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
