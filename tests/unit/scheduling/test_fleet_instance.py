"""The ledger of a member: at any moment it is what one would count anew."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import RequestId
from common.messages.control import DecodeProgress, Load
from services.scheduling.ledgers.fleet_instance import FleetInstance
from services.scheduling.ledgers.work_ledger import Share, Work
from services.scheduling.policies.routing import InstanceView
from services.scheduling.profiles.stage_times import DecodeLoad
from tests.unit.scheduling.costs_case import a_member

MOST = 6
SHARES = st.builds(
    Share, st.integers(0, 500), st.integers(1, 900), st.integers(1, 90), st.integers(90, 900), st.integers(1, 4)
)
A, B = RequestId("a"), RequestId("b")


def a_life(name: str = "d0", most_requests: int = MOST) -> FleetInstance:
    return FleetInstance(a_member(name), most_requests)


def a_share(prompt_tokens: int = 100, *, choices: int = 1) -> Share:
    return Share(prompt_tokens, prompt_tokens, expected_output=20, most_output=50, choices=choices)


def assert_empty(view: InstanceView) -> None:
    assert (view.outstanding_requests, view.outstanding_tokens, view.expected_tokens) == (0, 0, 0)
    assert (view.pending_prompts, view.decode_load, view.has_room) == ((), DecodeLoad(), True)
    assert view.work == Work()


@dataclass
class Recount:
    """The same without a ledger: everything kept, everything counted when asked."""

    placed: int = 0
    pending: dict[RequestId, Share] = field(default_factory=dict)
    decoding: dict[RequestId, Share] = field(default_factory=dict)
    progress: DecodeProgress = field(default_factory=lambda: DecodeProgress(0, 0))

    def shares(self) -> list[Share]:
        return [*self.pending.values(), *self.decoding.values()]

    def check(self, view: InstanceView) -> None:
        shares, pending = self.shares(), [share.prompt_tokens for share in self.pending.values()]
        decodes = sum(share.choices for share in self.decoding.values())
        assert view.placed == self.placed
        assert view.outstanding_requests == len(shares)
        assert view.has_room is (len(shares) < MOST)
        assert view.outstanding_tokens == sum(share.most_tokens for share in shares)
        assert view.expected_tokens == sum(share.expected_tokens for share in shares)
        assert sum(view.pending_prompts) == sum(pending)
        assert view.decode_load == DecodeLoad(
            decodes=decodes,
            decode_context=self.progress.decode_context if decodes else 0,
            prefill_tokens=max(0, sum(pending) - self.progress.partial_tokens),
            prompts=len(pending),
        )
        assert view.work.prompt_tokens == view.decode_load.prefill_tokens


@given(st.data())
def test_after_any_operations_the_ledger_is_what_is_counted_anew(data: st.DataObject) -> None:
    life, recount = a_life(), Recount()
    for number in range(data.draw(st.integers(1, 30))):
        held = [*recount.pending, *recount.decoding]
        choices = ["give"] * (len(held) < MOST) + ["computed", "release"] * bool(held) + ["progressed"]
        match data.draw(st.sampled_from(choices)):
            case "give":
                request, share = RequestId(str(number)), data.draw(SHARES)
                life.give(request, share)
                if not recount.pending:
                    recount.progress = DecodeProgress(recount.progress.decode_context, 0)
                recount.placed += 1
                recount.pending[request] = share
            case "computed":
                request = data.draw(st.sampled_from(held))
                life.computed(request)
                if (known := recount.pending.pop(request, None)) is not None:
                    recount.decoding[request] = known
            case "release":
                request = data.draw(st.sampled_from(held))
                life.release(request)
                recount.pending.pop(request, None)
                recount.decoding.pop(request, None)
            case "progressed":
                recount.progress = DecodeProgress(data.draw(st.integers(0, 999)), data.draw(st.integers(0, 999)))
                life.progressed(recount.progress)
        recount.check(life.view())
    for request in [*recount.pending, *recount.decoding]:
        life.release(request)
    assert_empty(life.view())


def test_it_takes_as_many_requests_as_it_may() -> None:
    life = a_life(most_requests=1)
    life.give(A, a_share())
    assert not life.view().has_room
    with pytest.raises(ValueError, match="'d0' holds 1 requests, the most it may"):
        life.give(B, a_share())
    life.release(A)
    life.give(B, a_share())
    assert life.view().placed == 2


def test_only_the_first_word_of_the_prompt_counts() -> None:
    life = a_life()
    life.give(A, a_share(choices=3))
    for _ in range(2):
        life.computed(A)
        assert life.view().decode_load == DecodeLoad(decodes=3)
    life.release(A)
    life.computed(A)
    assert_empty(life.view())


def test_what_is_computed_of_a_prompt_is_no_backlog() -> None:
    life = a_life()
    life.give(A, a_share(100))
    life.give(B, a_share(300))
    life.progressed(DecodeProgress(0, 150))
    assert life.view().decode_load == DecodeLoad(prefill_tokens=250, prompts=2)


def test_an_old_report_never_makes_a_backlog_negative() -> None:
    life = a_life()
    life.give(A, a_share(100))
    life.give(B, a_share(300))
    life.progressed(DecodeProgress(0, 350))
    life.release(B)
    assert life.view().decode_load == DecodeLoad(prefill_tokens=0, prompts=1)


def test_an_aborted_prompt_leaves_nothing_done_of_the_next() -> None:
    life = a_life()
    life.give(A, a_share(1000))
    life.progressed(DecodeProgress(0, 900))
    life.release(A)
    life.give(B, a_share(1000))
    assert life.view().decode_load.prefill_tokens == 1000
    life.progressed(DecodeProgress(0, 200))
    assert life.view().decode_load.prefill_tokens == 800


def test_every_prompt_that_waits_at_p_is_known_by_itself() -> None:
    """Each is a step of P with a base of its own."""
    life = a_life("p0", 9)
    for number in range(9):
        life.give(RequestId(str(number)), a_share(number + 1))
    assert life.view().pending_prompts == tuple(range(1, 10))
    life.computed(RequestId("3"))
    assert life.view().pending_prompts == (1, 2, 3, 5, 6, 7, 8, 9)


def test_the_many_prompts_of_d_are_one_sum() -> None:
    life = a_life()
    for number in range(5):
        life.give(RequestId(str(number)), a_share(100))
    assert life.view().pending_prompts == (500,)


def test_it_drains_when_it_says_so() -> None:
    life = a_life()
    assert not life.is_draining()
    life.report(Load(draining=True))
    assert life.is_draining()
    assert life.view().load == Load(draining=True)


def test_the_view_is_made_once_for_each_change() -> None:
    life = a_life()
    life.give(A, a_share())
    view = life.view()
    assert life.view() is view
    life.computed(A)
    assert life.view() is not view
