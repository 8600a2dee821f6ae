"""What decides in a simulation is what decides in a live mesh: the same objects, not the same words.

Those of a step are in tests/property/test_simulated_engine.py.
"""

from importlib import import_module

import pytest

from services.scheduling.policies.registry import POLICIES, load_policy
from services.simulator.runs.system import System
from tests.unit.simulator.simulation_case import LinearTimer, cluster, decode, prefill

SHARED = [
    ("services.scheduling.lifecycle.lifecycle:Lifecycle", "services.gateway.service:Lifecycle"),
    ("services.scheduling.lifecycle.lifecycle:Lifecycle", "services.simulator.simulation:Lifecycle"),
    ("services.scheduling.policies.registry:load_policy", "services.gateway.service:load_policy"),
    ("services.scheduling.policies.registry:load_policy", "services.simulator.runs.system:load_policy"),
    ("common.kv.ownership:step", "transfer.offer:step"),
    ("common.kv.ownership:step", "services.simulator.workers:ownership.step"),
    ("common.kv.wire:wire_token_bytes", "services.scheduling.policies.fixed:wire_token_bytes"),
    ("common.kv.wire:wire_token_bytes", "services.simulator.workers:wire_token_bytes"),
]


def found(name: str) -> object:
    module, _, attributes = name.partition(":")
    thing: object = import_module(module)
    for attribute in attributes.split("."):
        thing = getattr(thing, attribute)
    return thing


@pytest.mark.parametrize(("defined", "used"), SHARED)
def test_live_and_simulated_use_one_definition(defined: str, used: str) -> None:
    assert found(used) is found(defined)


@pytest.mark.parametrize("name", POLICIES)
def test_a_simulated_policy_is_the_live_one(name: str) -> None:
    instances = cluster(prefill("p", LinearTimer(1.0)), decode("d", LinearTimer(1.0)))
    simulated = System(name="any", policy=name, cluster=instances, entries={}).placement_policy()
    assert type(simulated) is type(load_policy(name, "full"))
