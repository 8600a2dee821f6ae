"""A request for the logprobs of its prompt runs at D alone, whatever the policy; no KV of others saves it anything."""

import msgspec
import pytest

from common.ids import RequestId, TransferId
from common.kv.prefix import PrefixKeys, PrefixNews, root_key
from common.messages.control import EmittedTokens, Load, RunDecode
from common.messages.sampling import SamplingParams, TokenLogprobs
from services.scheduling.lifecycle.events import Arrived, Deliver, Place, Send
from services.scheduling.lifecycle.lifecycle import Lifecycle, Limits
from services.scheduling.membership.members import LoadReported, MemberJoined
from services.scheduling.policies.registry import POLICIES, load_policy
from tests.unit.scheduling.costs_case import BLOCK, LAYOUT, a_member, a_request
from tests.unit.scheduling.lifecycle_case import a_lifecycle, a_spec, arrive, emit

SCORED = SamplingParams(logprobs=1, prompt_logprobs=1)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_policy_gives_p_a_part_in_it(policy: str) -> None:
    lifecycle = Lifecycle(Limits(), load_policy(policy, "full"))
    for name in ("p0", "d0"):
        lifecycle.handle(MemberJoined(a_member(name)))
    for number, params in enumerate((SamplingParams(), SCORED)):
        spec = msgspec.structs.replace(a_request(2000), request=RequestId(f"r{number}"), sampling=params)
        effects = lifecycle.handle(Arrived(0.0, spec, TransferId("t"), b"s"))
        (place,) = [effect.placement for effect in effects if isinstance(effect, Place)]
        jobs = [effect.message for effect in effects if isinstance(effect, Send)]
    assert (place.prefill, place.decode, place.split, place.kv_bytes) == (None, "d0", 0, 0)
    (job,) = jobs
    assert isinstance(job, RunDecode)
    assert (job.split, job.ticket, job.sampling) == (0, None, SCORED)


def test_what_d_holds_of_it_does_not_count() -> None:
    lifecycle = Lifecycle(Limits(), load_policy("fixed", 0))
    member = a_member("d0")
    lifecycle.handle(MemberJoined(member))
    plain = a_request(4 * BLOCK)
    keys = PrefixKeys(root_key(LAYOUT.model, BLOCK), BLOCK).first(4, lambda start, stop: plain.prompt[start:stop])
    lifecycle.handle(LoadReported(member.instance, member.generation, Load(), PrefixNews(tuple(keys))))
    scored = msgspec.structs.replace(plain, sampling=SCORED)
    assert lifecycle._fleet.held(plain) == {"d0": 4 * BLOCK}
    assert lifecycle._fleet.held(scored) == {}


def test_scores_come_with_the_first_token_and_are_not_passed_on_twice() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, msgspec.structs.replace(a_spec("r"), sampling=SCORED))
    score = (TokenLogprobs(-1.0),)
    first = EmittedTokens(RequestId("r"), 0, 0, (5,), None, score, score)
    assert emit(lifecycle, first) == [Deliver(first)]
    again = msgspec.structs.replace(first, tokens=(5, 6), logprobs=score * 2)
    assert emit(lifecycle, again) == [Deliver(EmittedTokens(RequestId("r"), 0, 1, (6,), None, score))]
