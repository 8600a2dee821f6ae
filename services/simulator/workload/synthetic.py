"""A workload without a file: lengths drawn from the quantiles of a public trace."""

import numpy as np
from numpy.typing import NDArray

from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import TracedRequest, Workload
from services.simulator.workload.seeds import Purpose, generator
from services.simulator.workload.shapes import AZURE_CONV, LengthShape


def synthetic(requests: int, seed: int, shape: LengthShape = AZURE_CONV) -> Workload:
    """`requests` requests with the lengths of `shape` and no arrivals (see `arrivals`); equal for equal arguments.

    The family is the piecewise log-linear quantile function of `QuantileTable`, drawn by stratified (Latin hypercube)
    sampling: of n requests one lies in each n-th of the prompts' distribution and one in each n-th of the outputs',
    in random order.  So even 1,000 requests have the shape's means and quantiles within 5 %, whatever the seed;
    the largest length is only approached.  Raises WorkloadError below one request or for a negative seed.
    """
    if requests < 1:
        raise WorkloadError(f"requests is {requests!r}; a workload has at least one")
    random = generator(seed, Purpose.LENGTHS)
    prompts = shape.prompt.at(_stratified(random, requests))
    outputs = shape.output.at(_stratified(random, requests))
    return Workload(
        name=f"synthetic-{shape.name}",
        source=f"synthetic, seed {seed}; quantiles of {shape.measured_from}",
        requests=tuple(
            TracedRequest(0.0, prompt, output)
            for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True)
        ),
    )


def _stratified(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """`count` fractions in [0, 1], one in each of as many equal strata, in random order."""
    return (random.permutation(count) + random.random(count)) / count
