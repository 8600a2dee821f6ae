"""Traces of requests as a person reads them. Pure."""

from collections.abc import Iterator
from typing import Final

import msgspec
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from services.gateway.records.trace_parts import Part, Stage, moving_s, parts, prefill_steps
from services.gateway.records.trace_types import FINISHED, RUNNING, RequestTrace, TraceSummary
from services.scheduling.placement import Placement
from services.scheduling.policies.balancer import Split

_NOTHING: Final = "-"
_WORDS: Final = {
    Stage.QUEUE: "gateway: waits for a place",
    Stage.PREFILL_WAIT: "P waits",
    Stage.PREFILL: "P computes",
    Stage.WIRE: "wire, after P has computed",
    Stage.DECODE_WAIT: "D waits",
    Stage.DECODE_PROMPT: "D computes the rest of the prompt",
    Stage.DECODE: "D generates",
    Stage.ANSWER: "gateway: ends the answer",
}


class Leg(msgspec.Struct, frozen=True):
    """A part of the way to the first token, as it was predicted."""

    name: str
    predicted_s: float
    real_s: float | None
    """None: not over yet, or not seen apart by the gateway."""


def headline(trace: RequestTrace) -> Iterator[str]:
    """What was asked, where it went, and how it ended."""
    choices = f" for each of {trace.choices} choices" if trace.choices > 1 else ""
    there = f" ({trace.cached_tokens} of them cached)" if trace.cached_tokens else ""
    asked = f"a prompt of {trace.prompt_tokens}{there}, at most {trace.max_tokens} tokens to come{choices}"
    whose = f" with the key of {trace.key}" if trace.key else ""
    yield f"request {trace.request}{whose}, {_age(trace.age_s)} ago: {asked}"
    if trace.placement is None:
        yield f"policy {trace.policy}: not placed"
    else:
        yield f"policy {trace.policy}: {_way(trace.placement, trace.prompt_tokens)}"
    yield _end(trace)


def events_table(trace: RequestTrace) -> Table:
    """What happened, in the order of time."""
    table = Table("what happened", title="As it went", title_justify="left")
    table.add_column("since arrival", justify="right")
    table.add_column("remark")
    for name, at_s, remark in sorted(_events(trace), key=lambda event: event[1]):
        table.add_row(name, _time(at_s), Text(remark))
    return table


def legs(trace: RequestTrace, split: Split) -> Iterator[Leg]:
    """The way from the placement to the first token; the legs in between add up to it.

    What is real of D's part holds D's work on other requests too.
    """
    assert trace.placement is not None
    begins_s = max(0.0, split.first_token_s - split.decode_s)
    first_s = trace.since_placed(trace.first_token_s)
    landed_s = None if trace.landed is None else trace.since_placed(trace.landed.at_s)
    rest_s = None if first_s is None or landed_s is None else first_s - landed_s
    if trace.placement.prefill is None:
        yield Leg("D's other work", begins_s, None)
    else:
        real = _prefill_seconds(trace)
        other_s = max(0.0, begins_s - split.prefill_s - split.transfer_s)
        yield Leg("until D can begin", begins_s, landed_s)
        yield Leg("  P's part", split.prefill_s, real.get(Stage.PREFILL))
        yield Leg("  hand-off after it", split.transfer_s, real.get(Stage.WIRE))
        yield Leg("  other work before", other_s, real.get(Stage.PREFILL_WAIT))
    yield Leg("D's part", split.decode_s, rest_s)
    yield Leg("first token", split.first_token_s, first_s)


def _prefill_seconds(trace: RequestTrace) -> dict[Stage, float]:
    """Of the stages up to the landing; none where P has not told, or there was no landing."""
    if trace.landed is None or prefill_steps(trace) is None:
        return {}
    return {part.stage: part.seconds for part in parts(trace)}


def parts_table(trace: RequestTrace) -> Table:
    """Where the time went, stage by stage, and the total."""
    table = Table("stage", title="Where the time went", title_justify="left")
    for name in ("seconds", "share"):
        table.add_column(name, justify="right")
    table.add_column("remark")
    for part in parts(trace):
        share = part.seconds / trace.total_s if trace.total_s else 0.0
        table.add_row(_WORDS[part.stage], _time(part.seconds), f"{share:.0%}", Text(_remark(trace, part)))
    table.add_section()
    table.add_row("total" if trace.ended_s is not None else "until now", _time(trace.total_s), "100%", "")
    return table


def _remark(trace: RequestTrace, part: Part) -> str:
    landed = trace.landed
    if part.stage is Stage.WIRE and landed is not None:
        moved_s = landed.at_s - moving_s(landed)
        return f"{decimal(landed.payload_bytes)} by {landed.backend}, which came for {_time(moved_s)}"
    if part.stage is Stage.DECODE and trace.tokens > trace.choices:
        return f"{trace.tokens} tokens, {_time(part.seconds * trace.choices / (trace.tokens - trace.choices))} each"
    return ""


def legs_table(trace: RequestTrace) -> Table:
    """Predicted beside real."""
    assert trace.prediction is not None
    table = Table("since the placement", title="Predicted and real", title_justify="left")
    for name in ("predicted", "real", "predicted/real"):
        table.add_column(name, justify="right")
    for leg in legs(trace, trace.prediction):
        shown = f"{leg.predicted_s / leg.real_s:.2f}" if leg.real_s else _NOTHING
        table.add_row(leg.name, _time(leg.predicted_s), _time(leg.real_s), shown)
    return table


def candidates_table(placement: Placement) -> Table:
    """What was weighed, in the policy's order: the chosen one first."""
    table = Table("", "prefill", "decode", title="Candidates, as predicted", title_justify="left")
    for name in ("split", "P's part", "hand-off", "D's part", "first token"):
        table.add_column(name, justify="right")
    for index, candidate in enumerate(placement.candidates):
        split = candidate.split
        times = (split.prefill_s, split.transfer_s, split.decode_s, split.first_token_s)
        mark = "chosen" if index == 0 else ""
        ends = (Text(candidate.prefill or _NOTHING), Text(candidate.decode))
        table.add_row(mark, *ends, str(split.tokens), *map(_time, times))
    return table


def why_nothing_is_predicted(trace: RequestTrace) -> str:
    """A sentence for a request without candidates."""
    if trace.placement is None:
        return "Nothing was predicted: the request was not placed."
    if trace.asked_split is not None:
        return f"Nothing was predicted: the request said its own split, {trace.asked_split!r}."
    return f"Nothing was predicted: the policy {trace.policy!r} weighs no candidates; `policy: cronus` does."


def summaries_table(traces: tuple[TraceSummary, ...]) -> Table:
    """One line each, the newest first."""
    table = Table(caption="first token: since the placement; queued and total: since the arrival")
    for name in ("request", "age", "outcome", "tokens", "split", "queued", "first token", "predicted", "total"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("request", "outcome", "split") else "right")
    for trace in traces:
        table.add_row(
            Text(trace.request),
            _age(trace.age_s),
            trace.outcome,
            f"{trace.prompt_tokens}+{trace.tokens}",
            Text(_split(trace)),
            _time(trace.placed_s),
            _time(trace.real_first_token_s),
            _time(trace.predicted_first_token_s),
            _time(trace.ended_s),
        )
    return table


def _split(trace: TraceSummary) -> str:
    if trace.decode is None:
        return _NOTHING
    return f"{trace.prefill} {trace.split} → {trace.decode}" if trace.prefill is not None else f"{trace.decode}"


def _events(trace: RequestTrace) -> Iterator[tuple[str, float, str]]:
    if trace.placed_s is not None:
        yield "placed", trace.placed_s, ""
    if trace.landed is not None:
        landed = trace.landed
        remark = f"{decimal(landed.payload_bytes)} by {landed.backend}, {_time(landed.seconds)} after D asked P"
        yield "KV landed at D", landed.at_s, remark
    if trace.released_s is not None:
        yield "P let go", trace.released_s, ""
    if trace.first_token_s is not None:
        yield "first token", trace.first_token_s, ""
    if trace.last_token_s is not None:
        yield "last token", trace.last_token_s, f"{trace.tokens} in all"
    if trace.ended_s is not None:
        yield "ended", trace.ended_s, trace.outcome


def _way(placement: Placement, prompt_tokens: int) -> str:
    if placement.prefill is None:
        return f"D {placement.decode} has the whole prompt"
    return (
        f"P {placement.prefill} has the first {placement.split} of the prompt, D {placement.decode} the last "
        f"{prompt_tokens - placement.split}; {decimal(placement.kv_bytes)} of KV between them"
    )


def _end(trace: RequestTrace) -> str:
    if trace.failure is not None:
        where = f" at {trace.failure.instance}" if trace.failure.instance is not None else ""
        return f"{trace.outcome}{where}: {trace.failure.message}"
    return {RUNNING: "it still runs", FINISHED: "it finished"}.get(trace.outcome, trace.outcome)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    return f"{seconds * 1e3:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
