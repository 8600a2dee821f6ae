"""Which roles each policy can serve with, in a cluster file."""

import pytest

from common.ids import InstanceId
from common.messages.control import Role
from services.scheduling.policies.registry import POLICIES, WHOLE_ONLY
from services.simulator.cluster.keys import ClusterKeys, InstanceKeys, SystemKeys
from services.simulator.cluster.rules import serving_problems


def problems(policy: str, *roles: Role) -> list[str]:
    entries = [InstanceKeys(InstanceId(f"i{number}"), role, device="A10") for number, role in enumerate(roles)]
    return list(serving_problems(SystemKeys("s", policy), ClusterKeys("LLaMA3-8B", tuple(entries))))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_needs_a_d(policy: str) -> None:
    [said] = problems(policy, Role.PREFILL)
    assert f"policy {policy!r} needs a decode instance" in said


@pytest.mark.parametrize("policy", sorted(WHOLE_ONLY))
def test_those_that_serve_whole_requests_would_leave_a_p_idle(policy: str) -> None:
    assert problems(policy, Role.DECODE, Role.DECODE) == []
    [said] = problems(policy, Role.DECODE, Role.PREFILL)
    assert said.startswith(f"policy {policy!r} serves every request whole")
    assert "i1 would stand idle" in said


def test_capacity_serves_with_any_mix() -> None:
    assert problems("capacity", Role.DECODE) == []
    assert problems("capacity", Role.DECODE, Role.PREFILL, Role.PREFILL) == []
