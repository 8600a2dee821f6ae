"""Where the time of a request went: exact cases, and what holds for every trace."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Failure, FailureKind
from common.ids import InstanceId, RequestId
from common.messages.control import PrefillTimes
from services.gateway.records.trace_parts import Stage, parts
from services.gateway.records.trace_spans import Party, spans
from services.gateway.records.trace_types import LandedKV, RequestTrace
from services.scheduling.placement import Placement

P0, D0 = InstanceId("p0"), InstanceId("d0")
SPLIT, WHOLE = Placement(P0, D0, 30, 4096), Placement(None, D0, 0, 0)
TRACE = RequestTrace(
    request=RequestId("r-1"),
    policy="fixed",
    prompt_tokens=40,
    max_tokens=8,
    choices=1,
    asked_split=None,
    age_s=9.0,
    placed_s=1.0,
    placement=SPLIT,
    landed=LandedKV(3.5, 4096, 2.0, "shm", first_byte_s=1.0),
    released_s=3.625,
    prefill_times=PrefillTimes(waited_s=0.25, computed_s=1.5, held_s=0.5),
    first_token_s=4.5,
    decode_computed_s=0.75,
    last_token_s=7.5,
    tokens=8,
    ended_s=8.0,
    outcome="finished",
)


def seconds_of(trace: RequestTrace) -> dict[str, float]:
    return {part.stage.value: part.seconds for part in parts(trace)}


def but(**changes: Any) -> RequestTrace:
    return msgspec.structs.replace(TRACE, **changes)


def test_every_stage_of_a_request_that_was_split() -> None:
    assert seconds_of(TRACE) == {
        "queue": 1.0,
        "prefill_wait": 0.625,  # P says 0.25; the rest is the way there and back
        "prefill": 1.5,
        "wire": 0.375,
        "decode_wait": 0.25,
        "decode_prompt": 0.75,
        "decode": 3.0,
        "answer": 0.5,
    }


def test_without_p_there_is_no_wire() -> None:
    alone = but(placement=WHOLE, landed=None, released_s=None, prefill_times=None)
    assert list(seconds_of(alone)) == ["queue", "decode_wait", "decode_prompt", "decode", "answer"]
    assert seconds_of(alone)["decode_wait"] == 2.75


def test_d_that_found_p_s_part_in_its_cache_waited_for_nobody() -> None:
    cached = but(landed=None, released_s=1.5, prefill_times=None, cached_tokens=32)
    assert list(seconds_of(cached)) == ["queue", "decode_wait", "decode_prompt", "decode", "answer"]


def test_a_p_that_told_nothing_has_all_until_the_bytes_came() -> None:
    silent = but(prefill_times=None)
    assert seconds_of(silent) | {"prefill": 1.5, "wire": 1.0} == seconds_of(silent)
    assert "prefill_wait" not in seconds_of(silent)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"placed_s": None, "placement": None, "landed": None, "first_token_s": None}, ["queue"]),
        ({"landed": None, "first_token_s": None, "released_s": None, "prefill_times": None}, ["queue", "prefill"]),
        ({"landed": None, "first_token_s": None}, ["queue", "prefill_wait", "prefill", "wire"]),
        ({"first_token_s": None}, ["queue", "prefill_wait", "prefill", "wire", "decode_wait"]),
    ],
)
def test_a_request_that_failed_has_its_last_stage_until_then(changes: dict[str, Any], stages: list[str]) -> None:
    failed = but(**changes, last_token_s=None, failure=Failure(FailureKind.PREFILL_LOST, "p0 is gone", P0))
    assert list(seconds_of(failed)) == stages
    assert sum(seconds_of(failed).values()) == 8.0


def test_a_request_that_runs_generates_until_now() -> None:
    running = but(ended_s=None)
    assert (seconds_of(running)["decode"], "answer" in seconds_of(running)) == (4.5, False)


def test_spans_name_every_party_and_what_it_did() -> None:
    found = {(span.party.value, span.name): (span.where, span.start_s, span.stop_s) for span in spans(TRACE)}
    assert found == {
        ("gateway", "request"): ("", 0.0, 8.0),
        ("gateway", "queue"): ("", 0.0, 1.0),
        ("gateway", "answer"): ("", 7.5, 8.0),
        ("prefill", "prefill"): ("p0", 1.0, 3.625),
        ("prefill", "wait"): ("p0", 1.0, 1.625),
        ("prefill", "compute"): ("p0", 1.625, 3.125),
        ("prefill", "hold KV"): ("p0", 3.125, 3.625),
        ("wire", "hand-off"): ("p0 → d0", 1.5, 3.5),
        ("wire", "bytes move"): ("p0 → d0", 2.5, 3.5),
        ("decode", "decode"): ("d0", 1.0, 7.5),
        ("decode", "wait"): ("d0", 1.0, 3.75),
        ("decode", "compute prompt"): ("d0", 3.75, 4.5),
        ("decode", "generate"): ("d0", 4.5, 7.5),
    }


MOMENT = st.floats(0, 10)
DURATION = st.floats(0, 20)
"""Longer than the request has run: another host's clock may be wrong in rate, and messages late."""


@st.composite
def any_trace(draw: st.DrawFn) -> RequestTrace:
    """Whatever can have been noted, in whatever order the messages came."""
    maybe = st.none() | MOMENT
    placement = draw(st.sampled_from([None, SPLIT, WHOLE]))
    first_s = draw(maybe)
    return msgspec.structs.replace(
        TRACE,
        age_s=10.0,
        placement=placement,
        placed_s=None if placement is None else draw(MOMENT),
        landed=draw(st.none() | st.builds(LandedKV, MOMENT, st.just(1), DURATION, st.just("shm"), DURATION)),
        released_s=draw(maybe),
        prefill_times=draw(st.none() | st.builds(PrefillTimes, DURATION, DURATION, DURATION)),
        cached_tokens=draw(st.integers(0, 40)),
        first_token_s=first_s,
        decode_computed_s=draw(st.none() | DURATION),
        last_token_s=None if first_s is None else draw(MOMENT),
        ended_s=draw(maybe),
    )


@given(any_trace())
def test_the_stages_follow_one_another_and_add_up(trace: RequestTrace) -> None:
    found = parts(trace)
    order = list(Stage)
    assert found[0].start_s == 0.0
    assert found[-1].stop_s == trace.total_s
    for one, other in pairwise(found):
        assert one.stop_s == other.start_s
        assert order.index(one.stage) < order.index(other.stage)
    assert all(part.seconds >= 0 for part in found)


@given(any_trace())
def test_spans_lie_within_their_parents_and_their_neighbours_do_not_overlap(trace: RequestTrace) -> None:
    found = spans(trace)
    assert (found[0].parent, found[0].party) == (None, Party.GATEWAY)
    for number, span in enumerate(found):
        assert 0.0 <= span.start_s <= span.stop_s <= trace.total_s
        if span.parent is not None:
            parent = found[span.parent]
            assert span.parent < number
            assert parent.start_s <= span.start_s
            assert span.stop_s <= parent.stop_s
    for parent_number in range(len(found)):
        for party in Party:
            inside = [span for span in found if (span.parent, span.party) == (parent_number, party)]
            inside.sort(key=lambda span: (span.start_s, span.stop_s))
            for one, other in pairwise(inside):
                assert one.stop_s <= other.start_s
