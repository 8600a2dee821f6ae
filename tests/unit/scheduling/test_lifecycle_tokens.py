"""Which tokens of a decode instance reach the client."""

import pytest

from common.errors import FailureKind
from common.ids import Generation, RequestId
from common.messages.control import (
    EmittedTokens,
)
from common.messages.sampling import TokenLogprobs
from services.scheduling.lifecycle.events import (
    Deliver,
    Fail,
    Finish,
)
from tests.unit.scheduling.lifecycle_case import (
    D0,
    D1,
    P0,
    STOP,
    a_lifecycle,
    a_spec,
    aborts,
    arrive,
    emit,
    kinds,
    tokens,
)


def test_tokens_seen_are_dropped_and_overlaps_trimmed() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    emit(lifecycle, tokens("r", 0, 5, 6, 7))
    assert emit(lifecycle, tokens("r", 0, 5, 6, 7)) == []
    assert emit(lifecycle, tokens("r", 1, 6)) == []
    assert emit(lifecycle, tokens("r", 3)) == []
    assert emit(lifecycle, tokens("r", 1, 6, 7, 8, 9)) == [Deliver(tokens("r", 3, 8, 9))]


def test_logprobs_are_trimmed_with_their_tokens() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    emit(lifecycle, tokens("r", 0, 5))
    known, new = TokenLogprobs(-0.1), TokenLogprobs(-0.2)
    overlap = EmittedTokens(RequestId("r"), 0, 0, (5, 6), None, (known, new))
    assert emit(lifecycle, overlap) == [Deliver(EmittedTokens(RequestId("r"), 0, 1, (6,), None, (new,)))]


def test_an_end_among_tokens_seen_still_ends_the_choice() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    emit(lifecycle, tokens("r", 0, 5, 6))
    assert emit(lifecycle, tokens("r", 1, 6, finish=STOP)) == [
        Deliver(tokens("r", 2, finish=STOP)),
        Finish(RequestId("r")),
    ]


def test_nothing_is_delivered_of_a_choice_that_has_ended() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r", choices=2))
    emit(lifecycle, tokens("r", 0, 5, finish=STOP))
    assert emit(lifecycle, tokens("r", 0, 5, finish=STOP)) == []
    assert emit(lifecycle, tokens("r", 1, 6)) == []
    assert lifecycle.holdings().requests == 1


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (tokens("r", 3, 9), "choice 0 goes on at token 3; the next is 2"),
        (tokens("r", 0, 5, finish=STOP), "choice 0 ends after 1 tokens; 2 have come before"),
        (tokens("r", 0, 5, choice=1), "tokens of choice 1; the request has 1"),
        (tokens("r", 0, 5, choice=-1), "tokens of choice -1; the request has 1"),
    ],
)
def test_a_contradiction_fails_the_request_at_both_sides(item: EmittedTokens, words: str) -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    emit(lifecycle, tokens("r", 0, 5, 6))
    effects = emit(lifecycle, item)
    assert kinds(effects) == {"r": FailureKind.ENGINE_FAILED}
    assert isinstance(effects[0], Fail)
    assert words in effects[0].failure.message
    assert effects[0].failure.instance == D0
    assert aborts(effects) == {("p0", "r"), ("d0", "r")}


def test_tokens_from_elsewhere_are_ignored() -> None:
    lifecycle = a_lifecycle(P0, D0, D1)
    arrive(lifecycle, a_spec("r"))
    assert emit(lifecycle, tokens("r", 0, 5), decode=D1) == []
    assert emit(lifecycle, tokens("r", 0, 5), generation=Generation(99)) == []
    assert emit(lifecycle, tokens("unknown", 0, 5)) == []
    assert emit(lifecycle, tokens("r", 0, 5)) == [Deliver(tokens("r", 0, 5))]
