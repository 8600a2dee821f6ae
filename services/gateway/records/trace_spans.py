"""A request's trace as spans: what every party did for it and when, for tools that draw timelines. Pure."""

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from services.gateway.records.trace_parts import Part, Stage, moving_s, parts, prefill_steps
from services.gateway.records.trace_types import RequestTrace


class Party(StrEnum):
    """Who spent the time."""

    GATEWAY = "gateway"
    PREFILL = "prefill"
    WIRE = "wire"
    DECODE = "decode"


Fact = str | int | float


class Span(msgspec.Struct, frozen=True):
    """Something that took time. Seconds count from the request's arrival at the mesh."""

    name: str
    party: Party
    where: str
    """The instance; both of them for the wire; empty for the gateway."""
    start_s: float
    stop_s: float
    parent: int | None
    """Number of the span that this is a part of, in the same sequence; it comes before. None: the whole request."""
    facts: dict[str, Fact] = {}


def spans(trace: RequestTrace) -> tuple[Span, ...]:
    """The whole request first. A part lies within its parent; those of one parent at one party do not overlap."""
    found = [_whole(trace)]
    by_stage = {part.stage: part for part in parts(trace)}
    for stage, name in ((Stage.QUEUE, "queue"), (Stage.ANSWER, "answer")):
        if stage in by_stage:
            found.append(_part(name, Party.GATEWAY, "", by_stage[stage], 0))
    if trace.placement is None or trace.placed_s is None:
        return tuple(found)
    if trace.placement.prefill is not None:
        found += _at_prefill(trace, trace.placement.prefill, len(found))
        found += _on_the_wire(trace, f"{trace.placement.prefill} → {trace.placement.decode}", len(found))
    found += _at_decode(trace, trace.placement.decode, by_stage, len(found))
    return tuple(found)


def _whole(trace: RequestTrace) -> Span:
    facts: dict[str, Fact] = {
        "request": trace.request,
        "policy": trace.policy,
        "outcome": trace.outcome,
        "prompt_tokens": trace.prompt_tokens,
        "cached_tokens": trace.cached_tokens,
        "output_tokens": trace.tokens,
    }
    if trace.placement is not None:
        facts["split"] = trace.placement.split
    if trace.failure is not None:
        facts["failure"] = trace.failure.message
    return Span("request", Party.GATEWAY, "", 0.0, trace.total_s, None, facts)


def _part(name: str, party: Party, where: str, part: Part, parent: int) -> Span:
    return Span(name, party, where, part.start_s, part.stop_s, parent)


def _at_prefill(trace: RequestTrace, instance: str, number: int) -> Iterator[Span]:
    """Nothing where P has not said a word; `number` is that of the first span."""
    if trace.released_s is None:
        return
    placed_s, stop_s = _since_placed(trace, trace.released_s)
    facts: dict[str, Fact] = {} if trace.placement is None else {"tokens": trace.placement.split}
    yield Span("prefill", Party.PREFILL, instance, placed_s, stop_s, 0, facts)
    if (steps := prefill_steps(trace)) is None:
        return
    began_s, computed_s = (min(max(at_s, placed_s), stop_s) for at_s in steps)
    yield Span("wait", Party.PREFILL, instance, placed_s, began_s, number)
    yield Span("compute", Party.PREFILL, instance, began_s, computed_s, number)
    yield Span("hold KV", Party.PREFILL, instance, computed_s, stop_s, number)


def _on_the_wire(trace: RequestTrace, where: str, number: int) -> Iterator[Span]:
    if (landed := trace.landed) is None:
        return
    placed_s, stop_s = _since_placed(trace, landed.at_s)
    start_s = min(max(landed.at_s - landed.seconds, placed_s), stop_s)
    facts: dict[str, Fact] = {"bytes": landed.payload_bytes, "backend": landed.backend}
    yield Span("hand-off", Party.WIRE, where, start_s, stop_s, 0, facts)
    yield Span("bytes move", Party.WIRE, where, min(max(moving_s(landed), start_s), stop_s), stop_s, number)


def _at_decode(trace: RequestTrace, instance: str, by_stage: dict[Stage, Part], number: int) -> Iterator[Span]:
    start_s, _ = _since_placed(trace, trace.total_s)
    decoded = by_stage.get(Stage.DECODE) or by_stage.get(Stage.DECODE_WAIT)
    stop_s = trace.total_s if decoded is None else decoded.stop_s
    yield Span("decode", Party.DECODE, instance, start_s, stop_s, 0)
    if (prompt := by_stage.get(Stage.DECODE_PROMPT)) is None:
        return
    yield Span("wait", Party.DECODE, instance, start_s, prompt.start_s, number)
    yield _part("compute prompt", Party.DECODE, instance, prompt, number)
    if Stage.DECODE in by_stage:
        yield _part("generate", Party.DECODE, instance, by_stage[Stage.DECODE], number)


def _since_placed(trace: RequestTrace, until_s: float) -> tuple[float, float]:
    """Start and end of what an instance did: it may let go after the request has ended, its span ends with that."""
    placed_s = min(trace.placed_s or 0.0, trace.total_s)
    return placed_s, min(max(until_s, placed_s), trace.total_s)
