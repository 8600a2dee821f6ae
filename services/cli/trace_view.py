"""Traces of requests as a person reads them. Pure."""

from collections.abc import Iterator
from typing import Final

import msgspec
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from services.gateway.trace_types import FINISHED, RUNNING, RequestTrace, TraceSummary
from services.scheduling.balancer import Split
from services.scheduling.placement import Placement

_NOTHING: Final = "-"


class Stage(msgspec.Struct, frozen=True):
    """A part of the way to the first token."""

    name: str
    predicted_s: float
    real_s: float | None
    """None: not over yet, or not seen apart by the gateway."""


def headline(trace: RequestTrace) -> Iterator[str]:
    """What was asked, where it went, and how it ended."""
    choices = f" for each of {trace.choices} choices" if trace.choices > 1 else ""
    there = f" ({trace.cached_tokens} of them cached)" if trace.cached_tokens else ""
    asked = f"a prompt of {trace.prompt_tokens}{there}, at most {trace.max_tokens} tokens to come{choices}"
    yield f"request {trace.request}, {_age(trace.age_s)} ago: {asked}"
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


def stages(trace: RequestTrace, split: Split) -> Iterator[Stage]:
    """The way from the placement to the first token; the stages in between add up to it.

    The gateway hears when the KV has landed at D and when the first token has come, and not when P or D began: what is
    real holds the work on other requests too, which is a row of its own among the predictions.
    """
    assert trace.placement is not None
    begins_s = max(0.0, split.first_token_s - split.decode_s)
    first_s = trace.since_placed(trace.first_token_s)
    landed_s = None if trace.landed is None else trace.since_placed(trace.landed.at_s)
    rest_s = None if first_s is None or landed_s is None else first_s - landed_s
    if trace.placement.prefill is None:
        yield Stage("D's other work", begins_s, None)
    else:
        yield Stage("until D can begin", begins_s, landed_s)
        yield Stage("  P's part", split.prefill_s, None)
        yield Stage("  hand-off after it", split.transfer_s, None)
        yield Stage("  other work before", max(0.0, begins_s - split.prefill_s - split.transfer_s), None)
    yield Stage("D's part", split.decode_s, rest_s)
    yield Stage("first token", split.first_token_s, first_s)


def stages_table(trace: RequestTrace) -> Table:
    """Predicted beside real."""
    assert trace.prediction is not None
    table = Table("since the placement", title="Predicted and real", title_justify="left")
    for name in ("predicted", "real", "predicted/real"):
        table.add_column(name, justify="right")
    for stage in stages(trace, trace.prediction):
        shown = f"{stage.predicted_s / stage.real_s:.2f}" if stage.real_s else _NOTHING
        table.add_row(stage.name, _time(stage.predicted_s), _time(stage.real_s), shown)
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
