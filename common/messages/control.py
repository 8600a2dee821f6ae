"""The control plane between the gateway and the workers: two closed unions, one for each direction."""

from enum import StrEnum
from typing import Annotated

import msgspec

from common.costs.models import InstanceCosts
from common.costs.shape import StepShape
from common.errors import Failure
from common.ids import Generation, InstanceId, MeasureId, RequestId
from common.kv.layout import KVLayout
from common.kv.prefix import PrefixNews
from common.kv.ticket import Ticket
from common.messages.device import DeviceFacts
from common.messages.sampling import SamplingParams, TokenLogprobs

WIRE_VERSION = 4
"""Version of the control messages. Raise it when a change cannot be read by the other side."""

# What workers say is added up, and divided by: no figure of theirs may be negative, infinite or none.
_ENDLESS = 1e300
Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=_ENDLESS)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=_ENDLESS)]


class Role(StrEnum):
    """What an instance does. Only a decode instance serves a whole request."""

    PREFILL = "prefill"
    DECODE = "decode"


class FinishReason(StrEnum):
    """Why a choice ended, in the OpenAI API's words."""

    STOP = "stop"
    LENGTH = "length"


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


# ---------------------------------------------------------------- worker → gateway


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an instance holds at one moment. All counts are zero when the mesh is idle."""

    waiting: Count = 0
    """Requests accepted but not yet given KV room."""
    running: Count = 0
    """Requests that hold KV blocks."""
    queued_tokens: Count = 0
    """Prompt tokens still to be computed."""
    context_tokens: Count = 0
    """Sum of the contexts of the sequences that decode."""
    blocks_used: Count = 0
    blocks_total: Count = 0
    blocks_kept: Count = 0
    """Free blocks with KV for requests that begin as earlier ones did."""
    tickets: Count = 0
    """Hand-offs open at this side, parked ones included."""
    staging_bytes: Count = 0
    """Staging memory in use now (not what is preallocated)."""
    tasks: Count = 0
    """Tasks that belong to requests."""
    steps: Count = 0
    """Forward passes since start: progress, for health."""
    tokens: Count = 0
    """Computed since start, of prompts and of answers."""
    link_fallbacks: Count = 0
    """Times since start that the best path for KV could not be used and a slower one was."""
    clamped_elements: Count = 0
    """Elements of KV since start that a narrowing cast set to the largest value of their new type."""
    lag_p99_s: Amount = 0.0
    lag_max_s: Amount = 0.0
    """How late the timers of the instance's event loop were lately (common.loop_lag)."""
    cost_factor: Amount = 1.0
    """Step times lately over those that the registered costs predict: above 1, the device is shared or throttled."""
    draining: bool = False
    """The instance finishes what it has and must be given nothing new."""


class Register(_Message, frozen=True):
    """An instance joins (or joins again, with a new generation)."""

    instance: InstanceId
    role: Role
    generation: Generation
    endpoints: tuple[str, ...]
    """Data endpoints where a prefill instance serves its KV; empty for decode."""
    layout: KVLayout
    context_length: Count
    """Most tokens (prompt + output) of one request."""
    kv_capacity_tokens: Count
    max_batch: Count
    """Sequences decoded at once (decode), or jobs held at once (prefill)."""
    budget: Count | None = None
    """Most tokens of one step (decode); most tokens of one chunk of a prompt (prefill). None: no bound."""
    costs: InstanceCosts | None = None
    """What its steps cost, from its profile; None: not known, and policies that predict cannot use it."""
    weight: Positive | None = None
    """Its share of the requests under the policy `dp`, relative to the others; None: by its costs."""
    device: DeviceFacts = DeviceFacts()


class Heartbeat(_Message, frozen=True):
    """The instance is alive; renews its lease and reports its load."""

    instance: InstanceId
    generation: Generation
    load: Load
    prefixes: PrefixNews | None = None
    """What its KV blocks hold, as far as that has changed; a new life begins with telling all. Bounded: the rest comes
    with the next ones."""


class Leaving(_Message, frozen=True):
    """The instance stops in order; nothing of it may be used any more."""

    instance: InstanceId
    generation: Generation


class EmittedTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Successive tokens of one choice. `first` is the number of tokens[0] within the choice, from 0."""

    request: RequestId
    choice: Count
    first: Count
    tokens: tuple[int, ...]
    finish: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token when asked for, else empty."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens from the second on when asked for: with the first token of choice 0 alone."""


class DecodeProgress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Where a decode instance stands after a step: what the gateway cannot count from the tokens it is sent."""

    decode_context: Count
    """Contexts of the sequences that decode, summed."""
    partial_tokens: Count
    """Prompt tokens already computed here of requests that have no token yet."""


class DecodeBegan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How long ago, by D's clock, the first step began that computed anything of a request that has its first token."""

    request: RequestId
    seconds: Amount


class TokensEmitted(_Message, frozen=True):
    """What one step of a decode instance produced, for every request of this gateway."""

    instance: InstanceId
    generation: Generation
    items: tuple[EmittedTokens, ...]
    progress: DecodeProgress | None = None
    began: tuple[DecodeBegan, ...] = ()
    """Of the requests whose first token is among `items`."""


class PrefillTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the time of a prompt went that P computed whole, by P's clock: one after the other, until it let go."""

    waited_s: Amount
    """From the RunPrefill until its first step."""
    computed_s: Amount
    """From there until all layers of all tokens were computed; steps for other prompts in between count too."""
    held_s: Amount
    """From there until the blocks were free: what was still on its way to D, or nobody came for."""


class PrefillReleased(_Message, frozen=True):
    """P holds nothing of the request any more: its slot is free. Sent once for each RunPrefill, however it ended."""

    instance: InstanceId
    generation: Generation
    request: RequestId
    times: PrefillTimes | None = None
    """None where the prompt was not computed to its end."""


class PrefixReused(_Message, frozen=True):
    """The KV of the first `tokens` tokens of the request's prompt was here already; said before anything is computed.

    From D, with at least its split, it means that P is not needed.
    """

    instance: InstanceId
    generation: Generation
    request: RequestId
    tokens: Count


class KVLanded(_Message, frozen=True):
    """D holds all KV of [0, split): from here P is not needed for this request."""

    instance: InstanceId
    generation: Generation
    request: RequestId
    payload_bytes: Count
    seconds: Amount
    backend: str
    """Scheme of the backend that moved it."""
    casting_side: str
    """Who converted elements: "source", "sink" or "nobody"."""
    first_byte_s: Amount = 0.0
    """Of `seconds`, those until the first segment had arrived: P was still computing, or had other work."""


class LinkFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the self-test of one backend between two instances measured."""

    backend: str
    bytes_per_s: Positive
    round_trip_s: Amount


class LinkMeasured(_Message, frozen=True):
    """D has met P: the figures of every backend that both have and that works, best first."""

    instance: InstanceId
    generation: Generation
    peer: InstanceId
    peer_generation: Generation
    figures: tuple[LinkFigures, ...]
    failed: tuple[str, ...] = ()
    """Why a backend that both have does not work, in words; then the best of the others is a fallback."""


class JobFailed(_Message, frozen=True):
    """The instance gave up its part of the request and holds nothing of it."""

    instance: InstanceId
    generation: Generation
    request: RequestId
    failure: Failure


class StepMeasured(_Message, frozen=True):
    """The answer to MeasureStep: the seconds of each repetition, or why there are none."""

    instance: InstanceId
    generation: Generation
    measure: MeasureId
    seconds: tuple[Amount, ...]
    refusal: str | None = None


FromWorker = (
    Register
    | Heartbeat
    | Leaving
    | TokensEmitted
    | PrefillReleased
    | PrefixReused
    | KVLanded
    | LinkMeasured
    | JobFailed
    | StepMeasured
)


# ---------------------------------------------------------------- gateway → worker


class Welcome(_Message, frozen=True):
    """Answer to Register: send a heartbeat every `heartbeat_s`; without one for `lease_s` you are lost.

    The same holds in reverse: a worker that gets no HeartbeatAck for `lease_s`, or sees another `epoch`
    (one life of the gateway), drops every job and joins anew.
    """

    epoch: Generation
    heartbeat_s: float
    lease_s: float


class HeartbeatAck(_Message, frozen=True):
    """The heartbeat was counted."""

    epoch: Generation


class Rejected(_Message, frozen=True):
    """The sender is not a member (its lease ended, its generation is old, or it cannot serve here)."""

    reason: str
    fatal: bool = False
    """True: joining anew will not help (another model, a wire version not spoken): the process should end."""


class RunPrefill(_Message, frozen=True):
    """Compute the KV of `prompt` (exactly the tokens [0, split)) and hold it for the bearer of the ticket."""

    request: RequestId
    prompt: tuple[int, ...]
    ticket: Ticket
    deadline_s: float
    """Seconds from now until everything held for this job is dropped."""


class RunDecode(_Message, frozen=True):
    """Serve a request. With split > 0 take the KV of [0, split) by the ticket, then compute the rest."""

    request: RequestId
    prompt: tuple[int, ...]
    split: int
    ticket: Ticket | None
    sampling: SamplingParams
    max_tokens: int
    """Tokens to emit per choice, at least 1."""
    choices: int
    stop_tokens: tuple[int, ...]
    """Emitting one of these ends the choice with finish reason stop; it is emitted, the gateway hides it."""
    min_tokens: int
    """Stop tokens cannot be sampled before this many are emitted."""
    deadline_s: float


class MeetPrefill(_Message, frozen=True):
    """To a decode instance: this prefill instance is in the mesh; measure the links to it."""

    peer: InstanceId
    peer_generation: Generation
    endpoints: tuple[str, ...]


class Abort(_Message, frozen=True):
    """Drop every trace of the request (both roles); no answer is expected but PrefillReleased from P."""

    request: RequestId


class Drain(_Message, frozen=True):
    """Finish what is here and say that nothing new is wanted, until Resume."""


class Resume(_Message, frozen=True):
    """Be given requests again. An instance that is leaving leaves all the same."""


class MeasureStep(_Message, frozen=True):
    """Compute a step of this shape, of random tokens, `repeats` times and say how long each took.

    An instance that has a job refuses; one that gets a job meanwhile breaks off.
    """

    measure: MeasureId
    shape: StepShape
    is_prefill: bool
    """A whole prompt alone (see common.costs.step)."""
    repeats: int


ToWorker = (
    Welcome | HeartbeatAck | Rejected | RunPrefill | RunDecode | MeetPrefill | Abort | Drain | Resume | MeasureStep
)
