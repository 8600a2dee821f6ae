"""The benchmark's samples as rows, and its summary."""

from collections.abc import Mapping, Sequence

from common.loop_lag import LoopLagFigures
from services.bench.gateway.cases import MIDDLE, Case
from services.bench.gateway.questions import STREAM, WHOLE
from services.bench.gateway.sample import Sample
from services.bench.gateway.system import PDMESH, RAW, Skipped, System
from services.bench.repeats import Measured
from services.bench.report import Row, Value, Where

SERVE, LOOP_LAG = "serve", "loop_lag"

Samples = Mapping[str, Sequence[Sample]]
"""By name of the system; every system has as many rounds."""


def case_rows(case: Case, client: str, systems: Sequence[System], samples: Samples) -> list[Row]:
    """A row for each system: what it gave, and what it added to the raw handler's latency, round by round."""
    return [_case_row(case, client, system, samples[system.name], samples[RAW]) for system in systems]


def _case_row(case: Case, client: str, system: System, mine: Sequence[Sample], raw: Sequence[Sample]) -> Row:
    p50, p99 = _of(mine, "p50_ms"), _of(mine, "p99_ms")
    rate, cpu = _of(mine, "answers_per_s"), _of(mine, "cpu_us_per_answer")
    question = case.question
    row: dict[str, Value] = {
        "kind": "gateway",
        "phase": SERVE,
        "where": Where.REAL.value,
        "repeats": len(mine),
        "system": system.name,
        "version": system.version,
        "settings": system.settings,
        "client": client,
        "connections": case.connections,
        "streaming": question.streaming,
        "output_tokens": question.output_tokens,
        **p50.columns("p50_ms"),
        **p99.columns("p99_ms"),
        **rate.columns("streams_per_s" if question.streaming else "requests_per_s"),
        **cpu.columns("cpu_us_per_answer"),
    }
    if question.streaming:
        row |= Measured.of(question.output_tokens * one for one in rate.values).columns("events_per_s")
    if system.name != RAW:
        row |= _added(p50, _of(raw, "p50_ms")).columns("added_p50_ms")
        row |= _added(p99, _of(raw, "p99_ms")).columns("added_p99_ms")
    return row


def _of(samples: Sequence[Sample], field: str) -> Measured:
    return Measured.of(float(getattr(sample, field)) for sample in samples)


def _added(mine: Measured, raw: Measured) -> Measured:
    return Measured.of(own - its for own, its in zip(mine.values, raw.values, strict=True))


def loop_lag_rows(case: Case, client: str, rounds: Sequence[Mapping[str, LoopLagFigures]]) -> list[Row]:
    """A row for each process that every round names: how late its event loop was under the load of `case`."""
    names = [name for name in rounds[0] if all(name in one for one in rounds)]
    rows: list[Row] = []
    for name in names:
        row: dict[str, Value] = {
            "kind": "gateway",
            "phase": LOOP_LAG,
            "where": Where.REAL.value,
            "repeats": len(rounds),
            "system": PDMESH,
            "process": name,
            "client": client,
            "connections": case.connections,
            "streaming": case.question.streaming,
            **Measured.of(1e3 * one[name].p99_s for one in rounds).columns("lag_p99_ms"),
            **Measured.of(1e3 * one[name].max_s for one in rounds).columns("lag_max_ms"),
        }
        rows.append(row)
    return rows


def skipped_row(skipped: Skipped) -> Row:
    """Says why a peer has no figures."""
    return {
        "kind": "skipped",
        "where": Where.REAL.value,
        "repeats": 0,
        "system": skipped.name,
        "reason": skipped.reason,
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Our figures that goals are set for; and how many times a peer's rate ours is, over MIDDLE connections."""
    found: dict[str, float] = {}
    for row in rows:
        if row["kind"] != "gateway" or row["phase"] != SERVE:
            continue
        is_whole = (row["streaming"], row["output_tokens"]) == (False, WHOLE.output_tokens)
        is_stream = (row["streaming"], row["output_tokens"]) == (True, STREAM.output_tokens)
        prefix = "" if row["system"] == PDMESH else f"{str(row['system']).replace('-', '_')}_"
        if is_whole and row["connections"] == 1:
            _take(found, f"{prefix}added_p50_ms", row.get("added_p50_ms"))
        if is_whole and row["connections"] == MIDDLE:
            _take(found, f"{prefix}requests_per_s_c{MIDDLE}", row.get("requests_per_s"))
        if is_stream and row["connections"] == MIDDLE:
            _take(found, f"{prefix}streams_per_s_c{MIDDLE}", row.get("streams_per_s"))
    return found


def _take(found: dict[str, float], name: str, value: Value) -> None:
    if isinstance(value, int | float):
        found[name] = float(value)
