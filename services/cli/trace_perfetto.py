"""Traces as Chrome trace events, which ui.perfetto.dev and chrome://tracing read. Pure.

The format: "Trace Event Format" by Google; "X" is an event with a duration, "M" names a process or a thread, times are
microseconds. A process here is one party (the gateway, an instance, the wire of a pair), a thread one request there.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from services.gateway.records.trace_spans import Party, Span, spans
from services.gateway.records.trace_types import RequestTrace

_LABELS = {Party.GATEWAY: "gateway", Party.PREFILL: "P", Party.WIRE: "wire", Party.DECODE: "D"}
_ORDER = {party: number for number, party in enumerate(Party)}
Process = tuple[Party, str]


def perfetto_file(traces: Sequence[RequestTrace]) -> bytes:
    """A JSON file with all of `traces`, whose ages must be of one moment. The first arrival is at 0."""
    events = [*_names(traces), *_durations(traces)]
    return msgspec.json.encode({"displayTimeUnit": "ms", "traceEvents": events})


def _names(traces: Sequence[RequestTrace]) -> Iterator[dict[str, Any]]:
    numbers = _numbers(traces)
    for (party, where), pid in numbers.items():
        name = f"{_LABELS[party]} {where}".strip()
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for tid, trace in enumerate(_oldest_first(traces), start=1):
        for process in dict.fromkeys(_process(span) for span in spans(trace)):
            place = {"pid": numbers[process], "tid": tid}
            yield {"ph": "M", "name": "thread_name", **place, "args": {"name": trace.request}}


def _durations(traces: Sequence[RequestTrace]) -> Iterator[dict[str, Any]]:
    numbers = _numbers(traces)
    origin_s = max((trace.age_s for trace in traces), default=0.0)
    for tid, trace in enumerate(_oldest_first(traces), start=1):
        arrived_s = origin_s - trace.age_s
        for span in spans(trace):
            # Whole microseconds of both ends: of a rounded duration the end might pass the parent's.
            start_us, stop_us = round((arrived_s + span.start_s) * 1e6), round((arrived_s + span.stop_s) * 1e6)
            yield {
                "ph": "X",
                "name": span.name,
                "cat": span.party.value,
                "pid": numbers[_process(span)],
                "tid": tid,
                "ts": start_us,
                "dur": stop_us - start_us,
                "args": {"request": trace.request} | span.facts,
            }


def _numbers(traces: Sequence[RequestTrace]) -> dict[Process, int]:
    """From 1: the gateway, then P, wires and D, each by name."""
    found = {_process(span) for trace in traces for span in spans(trace)}
    return {process: number for number, process in enumerate(sorted(found, key=_rank), start=1)}


def _rank(process: Process) -> tuple[int, str]:
    return _ORDER[process[0]], process[1]


def _process(span: Span) -> Process:
    return span.party, span.where


def _oldest_first(traces: Sequence[RequestTrace]) -> list[RequestTrace]:
    return sorted(traces, key=lambda trace: -trace.age_s)
