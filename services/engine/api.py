"""What an engine is asked (jobs) and what it says (events). No torch here: both sides of the thread share it."""

import msgspec

from common.errors import Failure
from common.ids import RequestId
from common.kv.prefix import PrefixNews
from common.messages.control import FinishReason
from common.messages.sampling import SamplingParams, TokenLogprobs
from services.engine.guide import Grammar


class PrefillJob(msgspec.Struct, frozen=True):
    """Compute the KV of `prompt` and hold it until `end`. Nothing is sampled."""

    request: RequestId
    prompt: tuple[int, ...]


class DecodeJob(msgspec.Struct, frozen=True):
    """Serve `prompt` to the end. The KV of its first `split` tokens comes from elsewhere (0: computed here)."""

    request: RequestId
    prompt: tuple[int, ...]
    split: int
    sampling: SamplingParams
    max_tokens: int
    choices: int = 1
    stop_tokens: tuple[int, ...] = ()
    min_tokens: int = 0
    grammar: Grammar | None = None
    """`sampling.grammar`, compiled; None where there is none."""


Job = PrefillJob | DecodeJob


class BlocksReserved(msgspec.Struct, frozen=True):
    """The job has its blocks. P may offer them; D (split > 0) may open the hand-off into them, and nothing is
    computed for the job until `kv_landed`.
    """

    request: RequestId
    blocks: tuple[int, ...]
    """Block i holds tokens [i·block_size, (i+1)·block_size)."""
    held: int = 0
    """Leading tokens, whole blocks, whose KV is in them already and must not be written: others may use it."""


class PrefixFound(msgspec.Struct, frozen=True):
    """The KV of the first `tokens` tokens of the job was here; said once, before any other event, where it is above 0.

    For a decode job with `tokens` of at least its split nothing is to come from elsewhere.
    """

    request: RequestId
    tokens: int


class PrefixesChanged(msgspec.Struct, frozen=True):
    """What the blocks of the pool hold has changed."""

    news: PrefixNews


class ComputingBegan(msgspec.Struct, frozen=True):
    """The first step that computes anything of the job begins; said at most once, for all its choices together."""

    request: RequestId


class LayerReady(msgspec.Struct, frozen=True):
    """A prefill job's KV of tokens [0, token_stop) is in its blocks for this layer (events come layer by layer)."""

    request: RequestId
    layer: int
    token_stop: int


class PrefillComputed(msgspec.Struct, frozen=True):
    """All layers of all tokens of a prefill job are computed."""

    request: RequestId


class PrefillFailed(msgspec.Struct, frozen=True):
    """A prefill job cannot be computed. Its blocks stay held, since a taker may be reading them, until `end`."""

    request: RequestId
    failure: Failure


class ChoiceTokens(msgspec.Struct, frozen=True):
    """Tokens sampled for one choice in one step. `first` numbers tokens[0] within the choice, from 0."""

    request: RequestId
    choice: int
    first: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason | None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """See EmittedTokens."""


class TokensSampled(msgspec.Struct, frozen=True):
    """Everything one step sampled."""

    items: tuple[ChoiceTokens, ...]


class JobEnded(msgspec.Struct, frozen=True):
    """The engine holds nothing of the job any more; the last event about it."""

    request: RequestId
    failure: Failure | None = None
    """None: finished, released or aborted as asked."""


EngineEvent = (
    BlocksReserved
    | PrefixFound
    | PrefixesChanged
    | ComputingBegan
    | LayerReady
    | PrefillComputed
    | PrefillFailed
    | TokensSampled
    | JobEnded
)


class EngineLoad(msgspec.Struct, frozen=True):
    """What the engine holds; all but steps, tokens and blocks_total are zero when idle."""

    waiting: int
    running: int
    queued_tokens: int
    context_tokens: int
    blocks_used: int
    blocks_total: int
    steps: int
    blocks_kept: int = 0
    """Free blocks whose KV may still be of use."""
    tokens: int = 0
    """Computed since start, of prompts and of answers."""
    partial_tokens: int = 0
    """Prompt tokens computed here of decode jobs that have no token yet."""
