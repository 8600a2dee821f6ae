"""Instances that answer at once, in the words that the life cycle accepts."""

from common.ids import Generation, InstanceId, RequestId, TransferId
from common.kv.ticket import Ticket
from common.messages.control import Abort, FinishReason, KVLanded, PrefillReleased, RunDecode, RunPrefill
from common.messages.sampling import SamplingParams
from services.bench.gateway.instant_jobs import InstantDecode, InstantPrefill
from services.scheduling.lifecycle.numbering import TokenNumbers

LIFE = Generation(3)
TICKET = Ticket(TransferId("t"), b"secret", Generation(1), LIFE, ())


def run_decode(name: str, max_tokens: int, ticket: Ticket | None = TICKET) -> RunDecode:
    return RunDecode(
        request=RequestId(name),
        prompt=(1, 2, 3),
        split=0 if ticket is None else 2,
        ticket=ticket,
        sampling=SamplingParams(),
        max_tokens=max_tokens,
        choices=1,
        stop_tokens=(),
        min_tokens=0,
        deadline_s=1.0,
    )


def test_a_prefill_is_released_as_soon_as_it_is_asked_for() -> None:
    jobs = InstantPrefill(InstanceId("p0"))
    asked = RunPrefill(RequestId("r"), (1, 2), TICKET, 1.0)
    assert list(jobs.answers(asked, LIFE)) == [PrefillReleased(InstanceId("p0"), LIFE, RequestId("r"))]
    assert list(jobs.answers(Abort(RequestId("r")), LIFE)) == []
    assert jobs.step(LIFE) is None


def test_every_step_has_the_next_token_of_every_request() -> None:
    jobs = InstantDecode(InstanceId("d0"))
    (landed,) = jobs.answers(run_decode("a", 3), LIFE)
    assert isinstance(landed, KVLanded)
    assert list(jobs.answers(run_decode("b", 2, ticket=None), LIFE)) == []
    steps = [step for step in (jobs.step(LIFE) for _ in range(4)) if step is not None]
    assert [[item.request for item in step.items] for step in steps] == [["a", "b"], ["a", "b"], ["a"]]
    numbers = {name: TokenNumbers(1) for name in "ab"}
    for step in steps:
        assert all(len(item.tokens) == 1 and numbers[item.request].accept(item) == item for item in step.items)
    assert all(one.is_complete() for one in numbers.values())
    assert [item.finish for step in steps for item in step.items if item.request == "a"] == [
        None,
        None,
        FinishReason.LENGTH,
    ]


def test_what_is_aborted_or_of_a_life_that_is_over_is_forgotten() -> None:
    jobs = InstantDecode(InstanceId("d0"))
    for name in "ab":
        jobs.answers(run_decode(name, 5), LIFE)
    jobs.answers(Abort(RequestId("a")), LIFE)
    jobs.answers(Abort(RequestId("never here")), LIFE)
    step = jobs.step(LIFE)
    assert step is not None
    assert [item.request for item in step.items] == ["b"]
    jobs.forget()
    assert jobs.step(LIFE) is None
