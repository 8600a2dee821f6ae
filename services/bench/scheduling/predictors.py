"""Predictors of output lengths for the comparison: those of the gateway, and the truth with errors put into it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.bench.scheduling.loads import SchedulerLoad
from services.scheduling.ledgers.output_lengths import Oracle, OutputLengths, load_predictor
from services.scheduling.request import RequestSpec
from services.simulator.workload.requests import Workload

PAST_ANSWERS: Final = 600
"""Of an earlier day, that a predictor has learnt from before the first request."""
DEFAULT: Final = "quantile"
_PAST_SEED: Final = 99
_ERROR_SEED: Final = 7

Factors = Callable[[int], "np.typing.NDArray[np.float64]"]
"""requests → by what the truth is multiplied for each."""

ORACLES: Mapping[str, Factors] = MappingProxyType(
    {
        "oracle": np.ones,
        "oracle x 0.5": lambda count: np.full(count, 0.5),
        "oracle x 2": lambda count: np.full(count, 2.0),
        "oracle x lognormal": lambda count: np.exp(np.random.default_rng(_ERROR_SEED).standard_normal(count)),
    }
)
LEARNING: Final = ("class", "quantile", "mean")
MAX_TOKENS: Final = "max_tokens"
PREDICTORS: Final = (*ORACLES, *LEARNING, MAX_TOKENS)


def predictor(name: str, load: SchedulerLoad, workload: Workload) -> OutputLengths:
    """A fresh one of PREDICTORS for a run of `workload`; one that learns has seen PAST_ANSWERS of `load` before.

    Raises ConfigError for a name that is not there.
    """
    if name in ORACLES:
        outputs = np.array([request.output_tokens for request in workload.requests])
        told = np.maximum(1.0, outputs * ORACLES[name](len(outputs)))
        return Oracle(lambda request: float(told[int(request.request)]))
    lengths = load_predictor(name)
    for request in load.make(PAST_ANSWERS, _PAST_SEED).requests:
        lengths.observe(_past(request.user, load.max_tokens or request.output_tokens), request.output_tokens)
    return lengths


def _past(user: str, max_tokens: int) -> RequestSpec:
    return RequestSpec(RequestId("past"), (), SamplingParams(), max_tokens, float("inf"), user=user)
