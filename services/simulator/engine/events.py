"""What a simulated engine says, to whom it reports gaps, and what it can be wrong about.

The events have the names that services.engine.api gives them.  `key` is the caller's; `at` and `began` are seconds of
simulated time.
"""

from typing import Protocol

import msgspec

from common.errors import PdmeshError


class SimulationError(PdmeshError):
    """The simulated engine was used against its contract, or broke an invariant of its own; the message says which."""


class BlocksReserved(msgspec.Struct, frozen=True):
    """The job has its blocks, for all its prompt: P may offer them; D (split > 0) waits for `kv_landed`."""

    key: int
    at: float


class PrefillAdvanced(msgspec.Struct, frozen=True):
    """The KV of tokens [start, stop) of a prefill job was computed, layer after layer, from `began` to `at`."""

    key: int
    began: float
    at: float
    start: int
    stop: int


class PrefillComputed(msgspec.Struct, frozen=True):
    """All tokens of a prefill job are computed; its blocks stay held until `end`."""

    key: int
    at: float


class FirstToken(msgspec.Struct, frozen=True):
    """A decode job has emitted its first token."""

    key: int
    at: float


class Finished(msgspec.Struct, frozen=True):
    """A decode job has emitted its last token; the engine holds nothing of it any more."""

    key: int
    at: float


class Refused(msgspec.Struct, frozen=True):
    """The job can never be served here; the engine holds nothing of it."""

    key: int
    at: float
    reason: str


EngineEvent = BlocksReserved | PrefillAdvanced | PrefillComputed | FirstToken | Finished | Refused


class GapRecorder(Protocol):
    """Takes the gaps between successive tokens of every sequence, many at a time."""

    def record_gap(self, seconds: float, count: int) -> None:
        """`count` sequences had this gap."""

    def record_run(self, first: float, increment: float, steps: int, count: int) -> None:
        """`count` sequences each had the gaps first + i·increment, for i in [0, steps)."""


class IgnoredGaps:
    """A recorder for who wants none."""

    def record_gap(self, seconds: float, count: int) -> None:
        """See GapRecorder."""

    def record_run(self, first: float, increment: float, steps: int, count: int) -> None:
        """See GapRecorder."""


class SimulatedLoad(msgspec.Struct, frozen=True):
    """What the engine holds; all but steps and blocks_total are zero when idle.

    The fields that services.engine.api.EngineLoad has too mean the same.
    """

    waiting: int
    running: int
    queued_tokens: int
    """Tokens still to compute of prompts that wait or run."""
    context_tokens: int
    """Tokens known (prompt and emitted) of the sequences that decode."""
    blocks_used: int
    blocks_total: int
    steps: int
    decodes: int
    """Sequences that compute one token in the next step."""
    partial_tokens: int = 0
    """Prompt tokens computed here of decode jobs that have no token yet."""
