"""The slice of a trace that the prefix cache is measured on: its scale, its recurring beginnings, its bound."""

import pytest

from services.bench.load.stream import LoadRequest
from services.bench.prefixes.prompts import Scale, bound_of, load_of, scaled_slice
from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import TracedRequest, Workload

VOCAB = range(100, 10_000)
SCALE = Scale(block_tokens=8, most_tokens=100)


def workload(*requests: TracedRequest) -> Workload:
    return Workload(name="t", source="", requests=requests, arrivals="recorded")


TRACE = workload(
    TracedRequest(0.0, 1500, 640, (1, 2, 3)),
    TracedRequest(0.0, 1024, 64, (1, 9)),
    TracedRequest(3.0, 9999, 64, tuple(range(20))),
    TracedRequest(6.0, 2000, 64, (1, 2, 3, 4)),
)


def test_lengths_shrink_and_long_requests_are_left_out() -> None:
    slice_ = scaled_slice(TRACE, 3, SCALE)
    assert [(one.prompt_tokens, one.output_tokens, one.hash_ids) for one in slice_] == [
        (23, 10, (1, 2, 3)),
        (16, 1, (1, 9)),
        (31, 1, (1, 2, 3, 4)),
    ]


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(WorkloadError, match="3 requests of at most 100"):
        scaled_slice(TRACE, 4, SCALE)
    with pytest.raises(WorkloadError, match="Mooncake"):
        scaled_slice(workload(TracedRequest(0.0, 100, 10)), 1, SCALE)


def test_equal_names_are_equal_tokens_and_another_round_has_others() -> None:
    slice_ = scaled_slice(TRACE, 3, SCALE)
    first, again, other = (load_of(slice_, SCALE, VOCAB, 2.0, seed) for seed in (0, 0, 1))
    assert first == again
    a, b, c = (request.prompt for request in first)
    assert (a[:8], a[:23]) == (b[:8], c[:23])
    assert not set(a) & set(b[8:])
    assert first[0].prompt[:8] != other[0].prompt[:8]
    assert all(token in VOCAB for token in a)


def test_times_have_the_rate_and_no_two_are_equal() -> None:
    times = [request.at_s for request in load_of(scaled_slice(TRACE, 3, SCALE), SCALE, VOCAB, 2.0, 0)]
    assert times == [0.0, pytest.approx(0.5), pytest.approx(1.0)]


def request(*prompt: int) -> LoadRequest:
    return LoadRequest(0.0, prompt, 1)


def test_the_bound_counts_whole_blocks_and_never_the_last_token() -> None:
    assert bound_of([request(1, 2, 3, 4)], 2) == 0
    assert bound_of([request(1, 2, 3, 4), request(1, 2, 3, 4)], 2) == 2 / 8
    assert bound_of([request(1, 2, 3, 4), request(1, 2, 3, 4, 5), request(1, 2, 9, 4)], 2) == (4 + 2) / 13
    assert bound_of([request(1, 2), request(3, 2, 1)], 2) == 0


def test_a_cache_with_an_end_forgets_what_was_longest_unused() -> None:
    first, second = request(1, 2, 3, 4, 5), request(6, 7, 8, 9, 10)
    assert bound_of([first, second, first], 2, None) == 4 / 15
    # Two blocks of each prompt and one of each answer.
    assert bound_of([first, second, first], 2, 6) == 4 / 15
    assert bound_of([first, second, first], 2, 5) == 2 / 15, "the end of the first is forgotten before its beginning"
    assert bound_of([first, second, first], 2, 3) == 0
