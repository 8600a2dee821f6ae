"""The trace of one request: what was predicted when it was placed, and when things happened."""

from typing import Final

import msgspec

from common.errors import Failure
from common.ids import InstanceId, RequestId
from common.messages.control import PrefillTimes
from services.scheduling.placement import Placement
from services.scheduling.policies.balancer import Split

RUNNING: Final = "running"
FINISHED: Final = "finished"


class LandedKV(msgspec.Struct, frozen=True):
    """D has all KV of P's part."""

    at_s: float
    """Since the arrival."""
    payload_bytes: int
    """On the wire."""
    seconds: float
    """From D's connection to P. D connects when it has room, so that these may hold the time of P's computing too."""
    backend: str
    first_byte_s: float = 0.0
    """Of `seconds`, those until something had arrived."""


class RequestTrace(msgspec.Struct):
    """One request, without its prompt. Seconds count from its arrival at the mesh, None where that has not happened.

    Mutable for its owner alone, which gives out copies.
    """

    request: RequestId
    policy: str
    prompt_tokens: int
    max_tokens: int
    """Per choice."""
    choices: int
    asked_split: str | int | float | None
    """The split that the request said itself; None: the policy's."""
    age_s: float = 0.0
    """From the arrival until this copy was made."""
    placed_s: float | None = None
    placement: Placement | None = None
    """With the candidates; their predictions count from placed_s."""
    cached_tokens: int = 0
    """Leading tokens of the prompt that nobody computed for this request: their KV was there."""
    landed: LandedKV | None = None
    released_s: float | None = None
    """P holds nothing of it any more."""
    prefill_times: PrefillTimes | None = None
    """Where the time went at P until then, by P's clock."""
    first_token_s: float | None = None
    decode_computed_s: float | None = None
    """From D's first step for it to its first token, by D's clock."""
    last_token_s: float | None = None
    tokens: int = 0
    """That D sampled, over all choices; those behind a stop string and those that end a text are counted too."""
    ended_s: float | None = None
    """The client has its answer, was told that there is none, or has gone."""
    outcome: str = RUNNING
    """RUNNING, FINISHED, or the kind of the failure: `cancelled` is a client that went away."""
    failure: Failure | None = None
    traceparent: str = ""
    """The W3C trace context that the client sent, as it sent it."""
    call: RequestId | None = None
    """Of a prompt of a batch that is not the first: the request that is."""
    key: str = ""
    """The name of the API key that it came with; empty where none is asked for."""

    @property
    def total_s(self) -> float:
        """From the arrival to the end; of one that runs, until now."""
        return self.age_s if self.ended_s is None else self.ended_s

    @property
    def prediction(self) -> Split | None:
        """What was predicted for the chosen candidate; None before there is one and where the policy predicts none."""
        return self.placement.candidates[0].split if self.placement is not None and self.placement.candidates else None

    def since_placed(self, at_s: float | None) -> float | None:
        """`at_s` as the predictions count."""
        return None if at_s is None or self.placed_s is None else at_s - self.placed_s


class TraceSummary(msgspec.Struct, frozen=True):
    """One line about a request. Both times of the first token count from the placement, the others from the arrival."""

    request: RequestId
    age_s: float
    outcome: str
    prompt_tokens: int
    tokens: int
    prefill: InstanceId | None
    decode: InstanceId | None
    """None: not placed."""
    split: int
    cached_tokens: int
    placed_s: float | None
    predicted_first_token_s: float | None
    real_first_token_s: float | None
    ended_s: float | None


class TraceList(msgspec.Struct, frozen=True):
    """The answer of GET /traces: the newest first."""

    kept: int
    """Most traces that the gateway keeps."""
    traces: tuple[TraceSummary, ...]


class WholeTraces(msgspec.Struct, frozen=True):
    """The answer of GET /traces?whole=true: the newest first; their ages are of one moment."""

    kept: int
    """Most traces that the gateway keeps."""
    traces: tuple[RequestTrace, ...]


def summary_of(trace: RequestTrace) -> TraceSummary:
    """`trace` in one line."""
    placement, prediction = trace.placement, trace.prediction
    return TraceSummary(
        request=trace.request,
        age_s=trace.age_s,
        outcome=trace.outcome,
        prompt_tokens=trace.prompt_tokens,
        tokens=trace.tokens,
        prefill=None if placement is None else placement.prefill,
        decode=None if placement is None else placement.decode,
        split=0 if placement is None else placement.split,
        cached_tokens=trace.cached_tokens,
        placed_s=trace.placed_s,
        predicted_first_token_s=None if prediction is None else prediction.first_token_s,
        real_first_token_s=trace.since_placed(trace.first_token_s),
        ended_s=trace.ended_s,
    )
