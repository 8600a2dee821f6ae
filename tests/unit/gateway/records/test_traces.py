"""The recorder of traces, told by hand what the gateway tells it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock
from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId
from common.messages.control import DecodeBegan, EmittedTokens, KVLanded, PrefillReleased, PrefillTimes, TokensEmitted
from common.messages.sampling import SamplingParams
from services.gateway.openai.types import Usage
from services.gateway.records.observer import Observers, SilentObserver
from services.gateway.records.trace_types import RequestTrace, summary_of
from services.gateway.records.traces import Traces
from services.gateway.stream import GenerationRequest
from services.scheduling.placement import Candidate, Placement
from services.scheduling.policies.balancer import Split

P0, P1, D0, D1 = (InstanceId(name) for name in ("p0", "p1", "d0", "d1"))
CHOSEN = Candidate(P0, D0, Split(tokens=30, prefill_s=0.3, transfer_s=0.1, decode_s=0.2, first_token_s=0.9))
OTHER = Candidate(P1, D0, Split(tokens=20, prefill_s=0.5, transfer_s=0.1, decode_s=0.3, first_token_s=1.2))
PREDICTED = Placement(P0, D0, 30, 4096, (CHOSEN, OTHER))
FIXED = Placement(P0, D0, 39, 4096)
USAGE = Usage(40, 3, 43)


class Gateway:
    """A recorder, its clock and the ratios that it told."""

    def __init__(self, limit: int = 10) -> None:
        self.clock = ManualClock(1000.0)
        self.ratios: list[float] = []
        self.traces = Traces(limit, "cronus", self.clock, self.ratios.append)

    def arrive(self, name: str = "r-1", **asked: Any) -> RequestId:
        request = RequestId(name)
        self.traces.arrived(GenerationRequest(request, tuple(range(40)), SamplingParams(seed=1), 8, **asked))
        return request

    def emit(self, name: str, count: int = 1) -> None:
        self.traces.delivered(EmittedTokens(RequestId(name), 0, 0, (7,) * count))

    def of(self, name: str = "r-1") -> RequestTrace:
        trace = self.traces.trace(RequestId(name))
        assert trace is not None
        return trace

    def names(self, count: int = 100) -> list[str]:
        return [trace.request for trace in self.traces.newest(count)]


def landed(name: str, instance: InstanceId = D0, payload_bytes: int = 4096) -> KVLanded:
    return KVLanded(instance, Generation(1), RequestId(name), payload_bytes, 0.4, "shm", "nobody")


def released(name: str, instance: InstanceId = P0) -> PrefillReleased:
    return PrefillReleased(instance, Generation(1), RequestId(name))


def test_a_whole_life_is_timed_from_the_arrival() -> None:
    gateway = Gateway()
    request = gateway.arrive(choices=2)
    gateway.clock.advance(0.5)
    gateway.traces.placed(request, PREDICTED)
    gateway.clock.advance(0.75)
    gateway.traces.heard(landed(request))
    gateway.clock.advance(0.125)
    gateway.traces.heard(released(request))
    gateway.clock.advance(0.125)
    gateway.emit(request)
    gateway.clock.advance(1.0)
    gateway.emit(request, 3)
    gateway.clock.advance(0.25)
    gateway.traces.finished(request, USAGE, 2.75)
    gateway.clock.advance(10.0)

    trace = gateway.of()
    assert (trace.prompt_tokens, trace.max_tokens, trace.choices, trace.policy) == (40, 8, 2, "cronus")
    assert trace.asked_split is None
    assert (trace.placed_s, trace.placement) == (0.5, PREDICTED)
    assert trace.landed is not None
    assert (trace.landed.at_s, trace.landed.payload_bytes) == (1.25, 4096)
    assert (trace.landed.seconds, trace.landed.backend) == (0.4, "shm")
    assert (trace.released_s, trace.first_token_s, trace.last_token_s, trace.tokens) == (1.375, 1.5, 2.5, 4)
    assert (trace.ended_s, trace.outcome, trace.failure) == (2.75, "finished", None)
    assert trace.age_s == 12.75
    assert trace.prediction == CHOSEN.split
    assert gateway.ratios == [0.9 / 1.0]


def test_a_summary_counts_the_first_token_from_the_placement() -> None:
    gateway = Gateway()
    request = gateway.arrive()
    assert summary_of(gateway.of()).decode is None
    gateway.clock.advance(0.5)
    gateway.traces.placed(request, PREDICTED)
    gateway.clock.advance(2.0)
    gateway.emit(request)
    line = summary_of(gateway.of())
    assert (line.prefill, line.decode, line.split, line.outcome) == (P0, D0, 30, "running")
    assert (line.placed_s, line.predicted_first_token_s, line.real_first_token_s) == (0.5, 0.9, 2.0)


def test_the_prompt_is_not_kept() -> None:
    gateway = Gateway()
    prompt = (123_456_789,) * 5000
    gateway.traces.arrived(GenerationRequest(RequestId("r-1"), prompt, SamplingParams(seed=1), 8))
    assert gateway.of().prompt_tokens == 5000
    assert b"123456789" not in msgspec.json.encode(gateway.of())


def test_the_oldest_arrival_makes_way_even_if_it_still_runs() -> None:
    gateway = Gateway(limit=3)
    for name in "abcd":
        gateway.arrive(name)
    gateway.traces.placed(RequestId("b"), FIXED)  # what happens to a trace does not make it younger
    gateway.arrive("e")
    assert gateway.names() == ["e", "d", "c"]
    assert gateway.names(2) == ["e", "d"]
    assert len(gateway.traces) == 3
    assert gateway.traces.trace(RequestId("b")) is None


def test_no_traces_when_none_are_wanted() -> None:
    gateway = Gateway(limit=0)
    request = gateway.arrive()
    gateway.traces.placed(request, PREDICTED)
    gateway.emit(request)
    gateway.traces.finished(request, USAGE, 1.0)
    assert (len(gateway.traces), gateway.names(), gateway.ratios) == (0, [], [])


@pytest.mark.parametrize("kind", list(FailureKind))
def test_every_failure_is_an_end(kind: FailureKind) -> None:
    gateway = Gateway()
    request = gateway.arrive()
    gateway.clock.advance(0.25)
    failure = Failure(kind, "it broke", D0)
    gateway.traces.failed(request, failure, 0.25)
    trace = gateway.of()
    assert (trace.ended_s, trace.outcome, trace.failure) == (0.25, kind.value, failure)
    assert (trace.placed_s, trace.placement, trace.first_token_s, trace.prediction) == (None, None, None, None)


def test_what_comes_after_the_end_is_still_noted() -> None:
    """P lets go of a request whose client has gone."""
    gateway = Gateway()
    request = gateway.arrive()
    gateway.traces.placed(request, FIXED)
    gateway.traces.failed(request, Failure(FailureKind.CANCELLED, "the client went away"), 0.0)
    gateway.clock.advance(0.5)
    gateway.traces.heard(released(request))
    assert (gateway.of().ended_s, gateway.of().released_s) == (0.0, 0.5)
    assert gateway.of().outcome == "cancelled"


def test_others_say_nothing_about_a_request() -> None:
    gateway = Gateway()
    request = gateway.arrive()
    gateway.traces.heard(landed(request))  # before there is a placement
    gateway.traces.heard(released(request))
    gateway.traces.placed(request, FIXED)
    gateway.traces.heard(landed(request, D1))
    gateway.traces.heard(released(request, P1))
    gateway.traces.heard(TokensEmitted(D0, Generation(1), ()))
    assert (gateway.of().landed, gateway.of().released_s) == (None, None)


def test_the_first_of_a_kind_counts() -> None:
    gateway = Gateway()
    request = gateway.arrive()
    gateway.traces.placed(request, FIXED)
    for _ in range(2):
        gateway.clock.advance(1.0)
        gateway.traces.heard(landed(request))
        gateway.traces.heard(released(request))
    assert gateway.of().landed is not None
    assert (gateway.of().landed.at_s, gateway.of().released_s) == (1.0, 1.0)


def test_a_request_that_is_placed_anew_has_landed_nowhere_yet() -> None:
    gateway = Gateway()
    request = gateway.arrive()
    gateway.traces.placed(request, PREDICTED)
    gateway.traces.heard(landed(request))
    gateway.traces.heard(released(request))
    gateway.clock.advance(1.0)
    gateway.traces.placed(request, Placement(P1, D1, 20, 64))
    trace = gateway.of()
    assert (trace.placed_s, trace.landed, trace.released_s, trace.prediction) == (1.0, None, None, None)
    gateway.traces.heard(landed(request, D1))
    assert gateway.of().landed is not None


def test_a_policy_that_predicts_nothing_has_no_ratio() -> None:
    gateway = Gateway()
    request = gateway.arrive(split=0.5)
    gateway.traces.placed(request, FIXED)
    gateway.clock.advance(1.0)
    gateway.emit(request)
    assert (gateway.of().prediction, gateway.of().asked_split, gateway.ratios) == (None, 0.5, [])


def test_what_the_workers_tell_of_their_time_is_kept() -> None:
    gateway = Gateway()
    request = gateway.arrive()
    begun = (DecodeBegan(request, 0.5),)
    gateway.traces.heard(TokensEmitted(D0, Generation(1), (), began=begun))  # before there is a placement
    gateway.traces.placed(request, FIXED)
    gateway.traces.heard(TokensEmitted(D1, Generation(1), (), began=begun))
    assert gateway.of().decode_computed_s is None
    times = PrefillTimes(0.1, 0.2, 0.3)
    gateway.traces.heard(PrefillReleased(P0, Generation(1), request, times))
    gateway.traces.heard(TokensEmitted(D0, Generation(1), (), began=begun))
    gateway.emit(request)
    gateway.traces.heard(TokensEmitted(D0, Generation(1), (), began=(DecodeBegan(request, 9.0),)))
    assert (gateway.of().prefill_times, gateway.of().decode_computed_s) == (times, 0.5)


def test_who_listens_is_told_of_each_end() -> None:
    ended: list[RequestTrace] = []
    traces = Traces(2, "fixed", ManualClock(), lambda _: None, ended.append)
    for name in ("a", "b"):
        request = RequestId(name)
        traces.arrived(GenerationRequest(request, (1,), SamplingParams(seed=1), 8, traceparent=f"00-{name}"))
    traces.finished(RequestId("a"), USAGE, 1.0)
    traces.failed(RequestId("b"), Failure(FailureKind.OVERLOADED, "no"), 1.0)
    traces.finished(RequestId("c"), USAGE, 1.0)
    assert [(trace.request, trace.outcome, trace.traceparent) for trace in ended] == [
        ("a", "finished", "00-a"),
        ("b", "overloaded", "00-b"),
    ]


def test_what_was_given_out_does_not_change() -> None:
    gateway = Gateway()
    request = gateway.arrive()
    before = gateway.of()
    gateway.traces.placed(request, FIXED)
    gateway.emit(request)
    assert (before.placement, before.tokens) == (None, 0)


def test_a_trace_reads_back_from_json() -> None:
    gateway = Gateway()
    request = gateway.arrive(split="full")
    gateway.traces.placed(request, PREDICTED)
    gateway.traces.heard(landed(request))
    gateway.traces.failed(request, Failure(FailureKind.DECODE_LOST, "d0 is gone", D0), 0.0)
    trace = gateway.of()
    assert msgspec.json.decode(msgspec.json.encode(trace), type=RequestTrace) == trace


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
CALLS = st.tuples(st.sampled_from(["place", "land", "release", "emit", "finish", "fail"]), NAMES)


@given(st.integers(0, 3), st.lists(st.one_of(CALLS, st.just(("arrive", ""))), max_size=60))
def test_any_order_of_events_is_bounded_and_raises_nothing(limit: int, calls: list[tuple[str, str]]) -> None:
    gateway = Gateway(limit)
    arrivals: list[str] = []
    for call, name in calls:
        gateway.clock.advance(0.5)
        request = RequestId(name)
        match call:
            case "arrive":
                arrivals.append(gateway.arrive("abcde"[len(arrivals)] if len(arrivals) < 5 else f"x{len(arrivals)}"))
            case "place":
                gateway.traces.placed(request, PREDICTED)
            case "land":
                gateway.traces.heard(landed(name))
            case "release":
                gateway.traces.heard(released(name))
            case "emit":
                gateway.emit(name)
            case "finish":
                gateway.traces.finished(request, USAGE, 0.0)
            case _:
                gateway.traces.failed(request, Failure(FailureKind.OVERLOADED, "no"), 0.0)
        assert gateway.names() == arrivals[::-1][:limit]
    for trace in gateway.traces.newest(100):
        assert (trace.first_token_s is None) == (trace.tokens == 0)
        assert (trace.ended_s is None) == (trace.outcome == "running")


class Noting(SilentObserver):
    def __init__(self, name: str, notes: list[str]) -> None:
        self._name = name
        self._notes = notes

    def failed(self, request: RequestId, failure: Failure, seconds: float) -> None:
        self._notes.append(f"{self._name}: {request} {failure.kind} {seconds}")

    def token(self, request: RequestId, count: int, gap_s: float | None) -> None:
        self._notes.append(f"{self._name}: {request} {count} {gap_s}")


def test_several_observers_are_told_in_their_order() -> None:
    notes: list[str] = []
    both = Observers(Noting("one", notes), Noting("two", notes))
    request = RequestId("r-1")
    both.request_started(request, "completions", 3)
    both.first_token(request, 0.1)
    both.token(request, 2, None)
    both.finished(request, USAGE, 0.2)
    both.refused("completions", 400)
    both.failed(request, Failure(FailureKind.OVERLOADED, "no"), 0.5)
    assert notes == ["one: r-1 2 None", "two: r-1 2 None", "one: r-1 overloaded 0.5", "two: r-1 overloaded 0.5"]
