"""What is left to do at an instance: by hand, and against counting everything anew."""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import RequestId
from services.scheduling.ledgers.work_ledger import LedgerError, Mix, Share, Work, WorkLedger

A, B = RequestId("a"), RequestId("b")


# ---------------------------------------------------------------- by hand


def test_work_goes_down_as_tokens_come() -> None:
    ledger = WorkLedger()
    ledger.give(A, Share(60, 100, expected_output=10, most_output=50))
    mix = Mix(sequences=1, prompt_tokens=60, kv_tokens=100, output_tokens=10)
    assert ledger.work() == Work(60, 10, 100, 100, mix)
    assert ledger.work(partial=20).prompt_tokens == 40
    ledger.computed(A)
    ledger.emitted(A, 0, 1, ended=False)
    assert ledger.work() == Work(0, 9, 81, 101, mix)
    ledger.emitted(A, 0, 4, ended=False)
    assert ledger.work() == Work(0, 5, 25, 105, mix)
    ledger.release(A)
    assert ledger.work() == Work()


def test_an_answer_that_ends_early_gives_back_the_rest() -> None:
    ledger = WorkLedger()
    ledger.give(A, Share(5, 5, expected_output=100, most_output=100, choices=2))
    ledger.emitted(A, 0, 30, ended=False)
    assert (ledger.work().output_tokens, ledger.work().kv_tokens) == (170, 35)
    ledger.emitted(A, 0, 1, ended=True)
    assert (ledger.work().output_tokens, ledger.work().kv_tokens) == (100, 5)
    ledger.emitted(A, 0, 9, ended=False)
    assert ledger.work().output_tokens == 100, "it has ended"
    ledger.emitted(A, 1, 1, ended=True)
    assert (ledger.work().output_tokens, ledger.work().kv_tokens) == (0, 5), "the prompt is there until it is released"


@pytest.mark.parametrize(
    ("emitted", "still"),
    [(0, 10), (9, 1), (10, 5), (14, 1), (15, 7), (21, 1), (22, 11), (32, 1), (33, 7), (39, 1), (40, 0), (41, 0)],
)
def test_one_that_outlives_its_prediction_is_expected_to_be_half_as_long_again(emitted: int, still: int) -> None:
    """10 tokens, then 15, 22, 33, and 40 at most."""
    assert Share(0, 0, expected_output=10, most_output=40).still_to_come(emitted) == still


def test_an_expectation_of_nothing_grows_too() -> None:
    share = Share(0, 0, expected_output=0, most_output=3)
    assert [share.still_to_come(emitted) for emitted in range(4)] == [1, 1, 1, 0]


def test_at_p_there_is_no_output() -> None:
    ledger = WorkLedger()
    ledger.give(A, Share(64, 64))
    assert ledger.work() == Work(64, 0, 0, 64, Mix(1, 64, 64, 0))
    assert ledger.most_tokens == 64


def test_sums_of_requests_are_the_work_of_both() -> None:
    shares = Share(10, 20, 5, 9), Share(3, 3, 7, 7, 2)
    ledger = WorkLedger()
    for request, share in zip((A, B), shares, strict=True):
        ledger.give(request, share)
    assert ledger.work() == Work.of(shares[0]).plus(Work.of(shares[1]))


def test_a_wrong_sum_is_found() -> None:
    ledger = WorkLedger()
    ledger.give(A, Share(10, 20, 5, 9))
    ledger.check()
    ledger.pending_tokens += 1
    with pytest.raises(LedgerError, match="of 1 requests says"):
        ledger.check()


# ---------------------------------------------------------------- in any order


@dataclass
class Counted:
    """One request without a ledger."""

    share: Share
    emitted: list[int]
    ended: set[int] = field(default_factory=set)
    is_computed: bool = False

    def expected(self, emitted: int) -> int:
        """Said in another way than the ledger does: the lengths that it may be expected to have, one after another."""
        lengths = [self.share.expected_output]
        while lengths[-1] < self.share.most_output:
            lengths.append(min(self.share.most_output, lengths[-1] + max(1, lengths[-1] // 2)))
        return next((length - emitted for length in lengths if length > emitted), 0)

    def open(self) -> list[int]:
        return [count for number, count in enumerate(self.emitted) if number not in self.ended]

    def work(self) -> Work:
        still = [self.expected(count) for count in self.open()]
        return Work(
            prompt_tokens=0 if self.is_computed else self.share.prompt_tokens,
            output_tokens=sum(still),
            output_squares=sum(tokens * tokens for tokens in still),
            kv_tokens=self.share.kv_tokens + sum(self.open()),
            mix=Mix.of(self.share),
            ending=sum(count > 0 and self.expected(count) <= 1 for count in self.open()),
        )


SHARES = st.builds(
    lambda computed, before, expected, more, choices: Share(
        computed, computed + before, expected, expected + more, choices
    ),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(1, 40),
    st.integers(0, 60),
    st.integers(1, 3),
)


class AnyOrder:
    """A ledger and the same counted anew."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.ledger = WorkLedger()
        self.counted: dict[RequestId, Counted] = {}
        self.given = 0

    def step(self) -> None:
        actions = [self.give, *[self.compute, self.emit, self.emit, self.release] * bool(self.counted)]
        self.draw(st.sampled_from(actions))()
        self.check()

    def one(self) -> RequestId:
        return self.draw(st.sampled_from(list(self.counted)))

    def give(self) -> None:
        request, share = RequestId(str(self.given)), self.draw(SHARES)
        self.given += 1
        self.counted[request] = Counted(share, [0] * share.choices)
        self.ledger.give(request, share)

    def compute(self) -> None:
        request = self.one()
        self.counted[request].is_computed = True
        self.ledger.computed(request)

    def emit(self) -> None:
        request = self.one()
        held = self.counted[request]
        choice = self.draw(st.integers(0, held.share.choices - 1))
        tokens = self.draw(st.integers(0, max(0, held.share.most_output - held.emitted[choice])))
        ended = self.draw(st.booleans())
        if choice not in held.ended:
            held.emitted[choice] += tokens
            held.ended |= {choice} if ended else set()
        self.ledger.emitted(request, choice, tokens, ended=ended)

    def release(self) -> None:
        request = self.one()
        del self.counted[request]
        self.ledger.release(request)

    def check(self) -> None:
        work = Work()
        for held in self.counted.values():
            work = work.plus(held.work())
        assert self.ledger.work() == work
        assert all(value >= 0 for value in (*msgspec.structs.astuple(work)[:4], *msgspec.structs.astuple(work.mix)))
        assert self.ledger.requests() == tuple(self.counted)
        assert self.ledger.decodes == sum(held.share.choices for held in self.counted.values() if held.is_computed)
        self.ledger.check()


@given(st.data())
def test_after_any_events_the_sums_are_what_is_counted_anew(data: st.DataObject) -> None:
    traffic = AnyOrder(data)
    for _ in range(data.draw(st.integers(1, 40))):
        traffic.step()
    for request in traffic.ledger.requests():
        traffic.ledger.release(request)
    assert traffic.ledger.work() == Work()
    assert (traffic.ledger.most_tokens, traffic.ledger.decodes, len(traffic.ledger)) == (0, 0, 0)


def test_what_is_not_held_says_nothing() -> None:
    ledger = WorkLedger()
    ledger.computed(A)
    ledger.emitted(A, 0, 5, ended=False)
    assert ledger.work() == Work()
    with pytest.raises(KeyError):
        ledger.release(A)


def test_a_sequence_is_about_to_end_with_one_token_to_come() -> None:
    ledger = WorkLedger()
    ledger.give(A, Share(4, 4, expected_output=3, most_output=9))
    ledger.computed(A)
    seen = []
    for _ in range(4):
        seen.append(ledger.ending)
        ledger.emitted(A, 0, 1, ended=False)
    # It was expected to have three tokens, and has outlived that: now four are, and then six.
    assert seen == [0, 0, 1, 1]
    assert ledger.ending == 0
    ledger.release(A)
    assert ledger.work() == Work()
