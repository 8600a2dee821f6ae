"""One request as the decisions see it."""

import msgspec

from common.ids import RequestId
from common.messages.sampling import SamplingParams


class RequestSpec(msgspec.Struct, frozen=True):
    """What a client asked for, in token ids. Validated at the edge: prompt not empty, max_tokens and choices ≥ 1."""

    request: RequestId
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    """Tokens to emit per choice."""
    deadline_at: float
    """When the request must have ended, in seconds of the clock that every `now` is read from."""
    choices: int = 1
    stop_tokens: tuple[int, ...] = ()
    min_tokens: int = 0
    split: str | int | float | None = None
    """Placement override in the words of `resolve_split`; None: the mesh's own."""
    user: str = ""
    """Whom or what it is for, as the client says: requests of one user are taken to have answers of like lengths."""

    @property
    def is_scored(self) -> bool:
        """Whether the logprobs of the prompt are asked for: then D computes all of it, whatever KV there is of it."""
        return self.sampling.prompt_logprobs is not None
