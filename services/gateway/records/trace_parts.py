"""Where the time of one request went, from what its trace tells. Pure.

The gateway's clock says when it heard of things; a worker's own clock says how long something took there. The two are
never compared: a worker's duration is laid out backwards from the moment when the gateway heard of its end.
"""

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from services.gateway.records.trace_types import LandedKV, RequestTrace


class Stage(StrEnum):
    """What a request spends its time on, in this order. Each stage ends where the next one begins."""

    QUEUE = "queue"
    """At the gateway, until it was placed."""
    PREFILL_WAIT = "prefill_wait"
    """Until P's first step for it: other prompts there, and the way to it."""
    PREFILL = "prefill"
    """P computes [0, s). Where P did not tell how long: all from the placement to the last bytes on the wire."""
    WIRE = "wire"
    """Until D has all KV: what of the hand-off was not hidden behind P's computing."""
    DECODE_WAIT = "decode_wait"
    """Until D's first step for it: other requests there, and the ways between the machines."""
    DECODE_PROMPT = "decode_prompt"
    """D computes [s, L), until the gateway has the first token."""
    DECODE = "decode"
    """Until the last token."""
    ANSWER = "answer"
    """Until the client had all of its answer, or was told why there is none."""


class Part(msgspec.Struct, frozen=True):
    """The time that one stage took; seconds from the arrival of the request at the mesh."""

    stage: Stage
    start_s: float
    stop_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop_s - self.start_s


def parts(trace: RequestTrace) -> tuple[Part, ...]:
    """The stages that `trace` went through: without gaps, none negative, together `trace.total_s`.

    One that has not ended has its last stage until now, one that failed until it failed.
    """
    found: list[Part] = []
    at_s = 0.0
    for stage, until_s in _ends(trace):
        stop_s = trace.total_s if until_s is None else min(max(until_s, at_s), trace.total_s)
        found.append(Part(stage, at_s, stop_s))
        at_s = stop_s
        if until_s is None:
            break
    return tuple(found)


def moving_s(landed: LandedKV) -> float:
    """When the first bytes of KV had reached D, counted as `landed.at_s` is."""
    return landed.at_s - max(0.0, landed.seconds - landed.first_byte_s)


def prefill_steps(trace: RequestTrace) -> tuple[float, float] | None:
    """When P's first step began and when its last one had ended; None where P has not told."""
    times, released_s = trace.prefill_times, trace.released_s
    if times is None or released_s is None:
        return None
    computed_s = released_s - times.held_s
    return computed_s - times.computed_s, computed_s


def _ends(trace: RequestTrace) -> Iterator[tuple[Stage, float | None]]:
    """Each stage with its end; None: it has not ended, and nothing comes after it."""
    yield Stage.QUEUE, trace.placed_s
    if _has_hand_off(trace):
        yield from _hand_off_ends(trace)
    first_s, computed_s = trace.first_token_s, trace.decode_computed_s
    yield Stage.DECODE_WAIT, None if first_s is None else first_s - (computed_s or 0.0)
    yield Stage.DECODE_PROMPT, first_s
    yield Stage.DECODE, None if trace.ended_s is None else trace.last_token_s
    yield Stage.ANSWER, None


def _has_hand_off(trace: RequestTrace) -> bool:
    """P had a part in it; D may have found all of that part in its own cache."""
    if trace.placement is None or trace.placement.prefill is None:
        return False
    return trace.landed is not None or (trace.first_token_s is None and trace.cached_tokens < trace.placement.split)


def _hand_off_ends(trace: RequestTrace) -> Iterator[tuple[Stage, float | None]]:
    landed = trace.landed
    if (steps := prefill_steps(trace)) is not None:
        yield Stage.PREFILL_WAIT, steps[0]
        yield Stage.PREFILL, steps[1]
    else:
        yield Stage.PREFILL, None if landed is None else moving_s(landed)
    yield Stage.WIRE, None if landed is None else landed.at_s
