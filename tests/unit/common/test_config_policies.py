"""Policies and predictors in mesh.yaml: every name can be made, and needs no more roles than it uses."""

from typing import get_args, get_type_hints

import msgspec
import pytest

from common.config.rules import problems
from common.config.types import InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.messages.control import Role
from services.scheduling.ledgers.output_lengths import PREDICTORS, load_predictor
from services.scheduling.policies.registry import POLICIES, WHOLE_ONLY, load_policy

KEYS = get_type_hints(MeshConfig)
DECODE_ONLY = (InstanceConfig(InstanceId("d0"), Role.DECODE), InstanceConfig(InstanceId("d1"), Role.DECODE))


def test_mesh_yaml_and_the_registries_know_the_same_names() -> None:
    assert set(get_args(KEYS["policy"])) == set(POLICIES)
    assert set(get_args(KEYS["output_lengths"])) == set(PREDICTORS)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_can_be_made(name: str) -> None:
    load_policy(name, "full")


def test_the_default_predictor_can_be_made() -> None:
    load_predictor(MeshConfig().output_lengths)


@pytest.mark.parametrize("policy", [*sorted(WHOLE_ONLY), "capacity", "cronus"])
def test_no_prefill_instance_is_needed(policy: str) -> None:
    assert list(problems(msgspec.structs.replace(MeshConfig(instances=DECODE_ONLY), policy=policy))) == []


def test_a_predictor_that_is_not_known() -> None:
    with pytest.raises(msgspec.ValidationError, match="output_lengths"):
        msgspec.convert({"output_lengths": "oracle"}, MeshConfig)
