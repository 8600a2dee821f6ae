"""The timeline file, read as ui.perfetto.dev reads it: tracks by pid and tid, times in microseconds."""

import json
from collections import defaultdict
from typing import Any

import msgspec

from common.errors import Failure, FailureKind
from common.ids import InstanceId, RequestId
from services.cli.trace_perfetto import perfetto_file
from services.gateway.records.trace_types import RequestTrace
from services.scheduling.placement import Placement
from tests.unit.gateway.records.test_trace_parts import TRACE

LATER = msgspec.structs.replace(
    TRACE,
    request=RequestId("r-2"),
    age_s=8.5,
    placement=Placement(None, InstanceId("d1"), 0, 0),
    landed=None,
    released_s=None,
    prefill_times=None,
)
LOST = msgspec.structs.replace(
    TRACE,
    request=RequestId("r-3"),
    age_s=1.0,
    placed_s=0.0000004,
    landed=None,
    released_s=0.0,
    prefill_times=None,
    first_token_s=None,
    last_token_s=None,
    ended_s=0.5,
    outcome="prefill_lost",
    failure=Failure(FailureKind.PREFILL_LOST, "gone"),
)


def events_of(*traces: RequestTrace) -> list[dict[str, Any]]:
    found = json.loads(perfetto_file(traces))
    assert found["displayTimeUnit"] == "ms"
    return list(found["traceEvents"])


def tracks(events: list[dict[str, Any]]) -> dict[int, str]:
    return {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}


def test_a_party_is_a_process_and_a_request_a_thread() -> None:
    events = events_of(LATER, TRACE)
    assert list(tracks(events).values()) == ["gateway", "P p0", "wire p0 → d0", "D d0", "D d1"]
    threads = {(tracks(events)[e["pid"]], e["args"]["name"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(name, tid) for where, name, tid in threads if where == "gateway"} == {("r-1", 1), ("r-2", 2)}
    assert {name for where, name, _ in threads if where.startswith("P ")} == {"r-1"}


def test_times_are_microseconds_from_the_first_arrival() -> None:
    events = events_of(LATER, TRACE)
    whole = {e["args"]["request"]: (e["ts"], e["dur"]) for e in events if e["name"] == "request"}
    assert whole == {"r-1": (0, 8_000_000), "r-2": (500_000, 8_000_000)}
    (compute,) = (e for e in events if e["name"] == "compute")
    assert (tracks(events)[compute["pid"]], compute["ts"], compute["dur"]) == ("P p0", 1_625_000, 1_500_000)


def test_what_is_on_one_track_nests() -> None:
    """Perfetto draws events of one track that overlap otherwise in wrong places, or drops them."""
    by_track: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events_of(TRACE, LATER, LOST):
        if event["ph"] == "X":
            assert event["dur"] >= 0
            by_track[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for found in by_track.values():
        for start, stop in found:
            for low, high in found:
                is_apart = stop <= low or high <= start
                assert is_apart or (start <= low and high <= stop) or (low <= start and stop <= high)


def test_facts_and_failures_are_in_the_arguments() -> None:
    (lost,) = (event for event in events_of(LOST) if event["name"] == "request")
    assert (lost["args"]["outcome"], lost["args"]["failure"]) == ("prefill_lost", "gone")
    (hand_off,) = (event for event in events_of(TRACE) if event["name"] == "hand-off")
    assert (hand_off["args"]["bytes"], hand_off["args"]["backend"]) == (4096, "shm")


def test_no_request_is_an_empty_file() -> None:
    assert events_of() == []
