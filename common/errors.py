"""The one tree of errors, and the closed list of failures that travel between processes.

An *error* is raised inside a process; a *failure* is a value that says, across processes and finally to the client,
why a request did not finish.  `Failure.kind` alone decides the HTTP status and whether a retry makes sense.
"""

from enum import StrEnum

import msgspec

from common.ids import InstanceId


class PdmeshError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(PdmeshError):
    """The configuration cannot be used; the message names the key, the value and what would do."""


class MalformedMessage(PdmeshError):
    """Bytes from a peer are not a message of a version we speak."""


class ModelError(PdmeshError):
    """A model cannot be found, fetched, loaded or served by this engine."""


class GrammarRefused(PdmeshError):
    """A grammar cannot be compiled, or cannot be followed within the bounds; the message says why."""


class FailureKind(StrEnum):
    """Why a request ended without an answer."""

    INVALID_REQUEST = "invalid_request"
    OVERLOADED = "overloaded"
    NO_INSTANCE = "no_instance"
    PREFILL_LOST = "prefill_lost"
    DECODE_LOST = "decode_lost"
    HANDOFF_FAILED = "handoff_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ENGINE_FAILED = "engine_failed"
    SHUTTING_DOWN = "shutting_down"
    CANCELLED = "cancelled"


RETRYABLE: frozenset[FailureKind] = frozenset(
    {
        FailureKind.OVERLOADED,
        FailureKind.NO_INSTANCE,
        FailureKind.PREFILL_LOST,
        FailureKind.DECODE_LOST,
        FailureKind.HANDOFF_FAILED,
        FailureKind.SHUTTING_DOWN,
    }
)
"""Failures that another attempt may cure: the request itself was fine."""


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a request failed: a closed kind, words for a person, and the instance that failed where one did."""

    kind: FailureKind
    message: str
    instance: InstanceId | None = None

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed if sent again."""
        return self.kind in RETRYABLE
