"""The simulator as a queue that has been solved: M/D/1."""

import numpy as np
import pytest
from numpy.typing import NDArray

from services.scheduling.policies.fixed import FixedPolicy
from services.simulator.simulation import Simulation
from services.simulator.workload.requests import TracedRequest, Workload
from tests.unit.simulator.simulation_case import LinearTimer, cluster, decode

SERVICE_S = 1.0


def exponential_gaps(count: int, rate: float, seed: int) -> NDArray[np.float64]:
    """One gap out of each n-th of the exponential distribution, in random order: less chance than in n free draws."""
    random = np.random.default_rng(seed)
    return -np.log((random.permutation(count) + random.random(count)) / count) / rate


def waits(arrivals: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the simulator makes of prompts that one instance computes one after another, each in one step."""
    instance = decode("d", LinearTimer(base=SERVICE_S), max_batch=1)
    requests = tuple(TracedRequest(at, 4, 1) for at in arrivals.tolist())
    # They queue at the instance, where that is cheapest to simulate, and not at the gateway.
    work = Workload("M/D/1", "a test", requests)
    run = Simulation(cluster(instance), FixedPolicy(0), work, decode_batches=len(requests))
    run.run()
    return np.array([record.finished_at for record in run.records], dtype=float) - arrivals - SERVICE_S


@pytest.mark.parametrize(("utilisation", "requests"), [(0.3, 40_000), (0.6, 25_000), (0.8, 20_000)])
def test_waits_are_those_of_an_m_d_1_queue(utilisation: float, requests: int) -> None:
    rate = utilisation / SERVICE_S
    gaps = exponential_gaps(requests, rate, seed=1)
    arrivals = np.cumsum(gaps) - gaps[0]
    simulated = waits(arrivals)
    # Lindley: a request waits for what its predecessor waited and took, less the time between them. Solved for all at
    # once: how far the sums of (service - gap) stand above their lowest.
    sums = np.concatenate([[0.0], np.cumsum(SERVICE_S - gaps[1:])])
    np.testing.assert_allclose(simulated, sums - np.minimum.accumulate(sums), atol=1e-6)
    # Pollaczek and Khinchine: the mean wait is rho·S / (2·(1 - rho)).
    assert mean_wait(simulated, gaps, rate) == pytest.approx(
        utilisation * SERVICE_S / (2 * (1 - utilisation)), rel=0.02
    )


def mean_wait(waited: NDArray[np.float64], gaps: NDArray[np.float64], rate: float) -> float:
    """The mean, freed of most of its chance.

    A wait and the gap after it are independent, so the mean of wait · (gap - 1/rate) is 0 but for chance: below 0 where
    long waits happen to be followed by short gaps, and so by more long waits.  That mean over (1/rate - service) is
    added to the mean wait (a control variate).  Over 1,000 seeds the results have standard errors of 1.1, 0.9 and 0.8 %
    of the true mean at the utilisations above; plain means of as many free draws have 1.6, 2.7 and 5.5 %.
    """
    after = gaps[1:]
    chance = float(np.mean(waited[:-1] * (after - 1 / rate)))
    return float(waited.mean()) + chance / (1 / rate - SERVICE_S)
