"""What can never be served, and what only looks so."""

import pytest

from services.simulator.engine.events import SimulationError
from tests.unit.simulator.simulation_case import LinearTimer, cluster, decode, finished, prefill, simulation

STEP = LinearTimer(base=1.0)


def test_tokens_beyond_the_last_whole_block_are_no_room() -> None:
    # 19 tokens of memory are 4 blocks of 4: the request of 18 goes to the instance that holds it.
    run = simulation(cluster(decode("d0", STEP, kv_tokens=19), decode("d1", STEP, kv_tokens=20)), 0, (0.0, 16, 2))
    assert run.records[0].decode == "d1"
    assert finished(run) == [3.0]


def test_a_request_larger_than_every_d() -> None:
    with pytest.raises(SimulationError, match=r"request 1 failed: .*needs 21 tokens .*the largest .* holds 20"):
        simulation(cluster(decode("d", STEP, kv_tokens=20)), 0, (0.0, 2, 2), (1.0, 19, 2))


def test_a_split_larger_than_every_p() -> None:
    with pytest.raises(SimulationError, match=r"request 0 failed: .*the largest holds 8"):
        simulation(cluster(prefill("p", STEP, kv_tokens=11), decode("d", STEP)), 9, (0.0, 12, 2))


def test_a_cluster_without_a_d() -> None:
    with pytest.raises(SimulationError, match="no decode instance"):
        simulation(cluster(prefill("p", STEP)), 0, (0.0, 1, 1))
