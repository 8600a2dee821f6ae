"""When a pair of instances counts as one that answers."""

import pytest

from common.ids import Generation, InstanceId, RequestId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import Register, Role
from services.scheduling.membership.proofs import Ask, Drop, Pair, Proofs, pairs_of
from services.scheduling.policies.registry import load_policy
from services.scheduling.policies.routing import InstanceView, MeshView

P0, P1, D0 = InstanceId("p0"), InstanceId("p1"), InstanceId("d0")
PAIR, OTHER, ALONE = Pair(P0, D0), Pair(P1, D0), Pair(None, D0)
SILENCE_S = 10.0
R1, R2 = RequestId("r1"), RequestId("r2")


def proved(*pairs: Pair) -> Proofs:
    """After the first questions were answered at 0 s."""
    proofs = Proofs(SILENCE_S)
    assert proofs.tick(0.0, pairs) == [Ask(pair) for pair in pairs]
    for pair in pairs:
        proofs.answered(pair)
    assert proofs.not_ready(pairs) is None
    return proofs


def test_a_new_pair_is_asked_once_and_counts_when_it_has_answered() -> None:
    proofs = Proofs(SILENCE_S)
    assert "p0 → d0 has not answered its first request" in str(proofs.not_ready((PAIR,)))
    assert proofs.tick(0.0, (PAIR,)) == [Ask(PAIR)]
    assert proofs.tick(1.0, (PAIR,)) == []
    assert proofs.not_ready((PAIR,)) is not None
    proofs.answered(PAIR)
    assert proofs.not_ready((PAIR,)) is None
    assert [proofs.tick(float(now), (PAIR,)) for now in range(2, 1000)] == [[]] * 998, "an idle pair is left alone"


def test_no_pairs_are_not_for_this_to_judge() -> None:
    assert Proofs(SILENCE_S).not_ready(()) is None


def test_a_client_s_token_proves_a_pair_too() -> None:
    proofs = Proofs(SILENCE_S)
    proofs.tick(0.0, (PAIR,))
    proofs.placed(R1, PAIR)
    proofs.progressed(R1)
    assert proofs.not_ready((PAIR,)) is not None, "KV that landed is no answer"
    proofs.token(R1)
    assert proofs.not_ready((PAIR,)) is None


def test_stuck_work_is_a_question_and_no_answer_is_silence_until_a_token_comes() -> None:
    proofs = proved(PAIR)
    proofs.placed(R1, PAIR)
    assert proofs.tick(9.9, (PAIR,)) == []
    assert proofs.tick(10.0, (PAIR,)) == [Ask(PAIR)]
    assert proofs.not_ready((PAIR,)) is None, "it may only be slow"
    assert proofs.tick(20.0, (PAIR,)) == [Drop(PAIR), Ask(PAIR)]
    reason = str(proofs.not_ready((PAIR,)))
    assert "p0 → d0 has 1 requests, gave no token for 20.0 s and did not answer" in reason
    assert proofs.tick(30.0, (PAIR,)) == [Drop(PAIR), Ask(PAIR)], "and again, until it answers"
    proofs.answered(PAIR)
    assert proofs.not_ready((PAIR,)) is None
    assert proofs.tick(39.9, (PAIR,)) == []


@pytest.mark.parametrize("sign", [Proofs.token, Proofs.progressed])
def test_work_that_moves_is_never_asked_about(sign: object) -> None:
    assert callable(sign)
    proofs = proved(PAIR)
    proofs.placed(R1, PAIR)
    proofs.placed(R2, PAIR)
    for now in range(1, 100):
        sign(proofs, R1)
        assert proofs.tick(float(now), (PAIR,)) == []


def test_clients_that_lose_patience_do_not_hide_a_silent_pair() -> None:
    proofs = proved(PAIR)
    asked: list[object] = []
    for now in range(30):
        request = RequestId(f"r{now}")
        proofs.placed(request, PAIR)
        asked += proofs.tick(float(now), (PAIR,))
        proofs.ended(request)  # a second later its client has gone
    assert asked[:2] == [Ask(PAIR), Drop(PAIR)]
    assert proofs.not_ready((PAIR,)) is not None


def test_after_an_answered_request_the_clock_begins_anew() -> None:
    proofs = proved(PAIR)
    proofs.placed(R1, PAIR)
    proofs.token(R1)
    proofs.ended(R1)
    proofs.tick(1000.0, (PAIR,))
    proofs.placed(R2, PAIR)
    assert proofs.tick(1009.0, (PAIR,)) == []
    assert proofs.tick(1010.0, (PAIR,)) == [Ask(PAIR)]


def test_one_pair_that_answers_is_enough() -> None:
    proofs = Proofs(SILENCE_S)
    proofs.tick(0.0, (PAIR, OTHER))
    proofs.answered(OTHER)
    assert proofs.not_ready((PAIR, OTHER)) is None
    assert proofs.not_ready((PAIR,)) is not None


def test_a_refused_question_is_asked_again_after_a_pause() -> None:
    proofs = Proofs(SILENCE_S)
    proofs.tick(0.0, (PAIR,))
    proofs.refused(PAIR)
    assert proofs.tick(0.5, (PAIR,)) == []
    assert proofs.tick(1.0, (PAIR,)) == [Ask(PAIR)]


def test_a_new_life_has_to_prove_itself_even_where_the_pair_never_went() -> None:
    proofs = proved(PAIR, ALONE)
    proofs.placed(R1, PAIR)
    assert proofs.lost(P0) == []
    assert proofs.not_ready((PAIR,)) is not None
    assert proofs.not_ready((PAIR, ALONE)) is None
    assert proofs.tick(1.0, (PAIR, ALONE)) == [Ask(PAIR)]
    assert proofs.lost(D0) == [Drop(PAIR)]
    proofs.token(R1)  # late words of a life that is over
    proofs.ended(R1)
    assert proofs.not_ready((PAIR,)) is not None


def test_a_pair_that_is_offered_no_more_is_not_asked() -> None:
    proofs = Proofs(SILENCE_S)
    proofs.tick(0.0, (PAIR, OTHER))
    assert proofs.tick(1.0, (OTHER,)) == [Drop(PAIR)]
    assert proofs.tick(2.0, (OTHER,)) == []
    assert proofs.tick(3.0, (PAIR, OTHER)) == [Ask(PAIR)]


def test_few_are_asked_at_a_time_and_the_never_asked_first() -> None:
    pairs = tuple(Pair(InstanceId(f"p{i}"), D0) for i in range(5))
    proofs = Proofs(SILENCE_S, most_asked=2)
    assert proofs.tick(0.0, pairs) == [Ask(pairs[0]), Ask(pairs[1])]
    assert proofs.tick(1.0, pairs) == []
    asked = proofs.tick(10.0, pairs)
    assert asked == [Drop(pairs[0]), Drop(pairs[1]), Ask(pairs[2]), Ask(pairs[3])]
    assert "and 2 more" in str(proofs.not_ready(pairs))


def test_without_a_bound_nobody_is_asked_and_members_count() -> None:
    proofs = Proofs(None)
    proofs.placed(R1, PAIR)
    assert proofs.tick(1e6, (PAIR,)) == []
    assert proofs.not_ready((PAIR,)) is None


def test_what_ends_leaves_nothing_behind() -> None:
    proofs = proved(PAIR)
    for number in range(100):
        request = RequestId(f"r{number}")
        proofs.placed(request, ALONE)  # a way that is not offered, by a request that says so itself
        proofs.token(request)
        proofs.ended(request)
    proofs.tick(1.0, (PAIR, OTHER))
    assert proofs._running == {}
    assert set(proofs._standings) == {PAIR, OTHER}


def a_view(name: str, role: Role) -> InstanceView:
    layout = KVLayout("tiny", KVDType.FLOAT32, 16, KVOrder.NHD, Interval(0, 2), Interval(0, 3), 8)
    member = Register(
        instance=InstanceId(name),
        role=role,
        generation=Generation(1),
        endpoints=(),
        layout=layout,
        context_length=100,
        kv_capacity_tokens=100,
        max_batch=4,
    )
    return InstanceView(member, 0, 0, True, None)


def a_mesh(prefills: int, decodes: int) -> MeshView:
    return MeshView(
        prefills=tuple(a_view(f"p{i}", Role.PREFILL) for i in range(prefills)),
        decodes=tuple(a_view(f"d{i}", Role.DECODE) for i in range(decodes)),
    )


def test_the_pairs_are_the_ways_that_the_policy_has() -> None:
    split, whole = load_policy("fixed", "full"), load_policy("fixed", 0)
    assert pairs_of(split, a_mesh(2, 1)) == (PAIR, OTHER)
    assert pairs_of(split, a_mesh(0, 1)) == (), "it needs a prefill instance"
    assert pairs_of(whole, a_mesh(0, 1)) == (ALONE,)
    assert pairs_of(whole, a_mesh(1, 1)) == (PAIR, ALONE)
    assert pairs_of(whole, a_mesh(1, 0)) == ()
