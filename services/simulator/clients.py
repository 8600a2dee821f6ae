"""What the clients of a simulation ask for, and what is known of their answers beforehand."""

from typing import Final, cast

from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.scheduling.ledgers.output_lengths import Oracle, OutputLengths, load_predictor
from services.scheduling.request import RequestSpec
from services.simulator.engine.events import SimulationError
from services.simulator.workload.requests import Workload

ORACLE: Final = "oracle"
"""The predictor of output lengths that knows them, beside those of output_lengths.PREDICTORS."""
_GREEDY = SamplingParams()
_NEVER = float("inf")


class Clients:
    """The requests of a workload by their number from 0, which is their id too.

    `max_tokens` is what every one says that its answer may have at most; None: each says just how long it is.  Raises
    SimulationError where an answer is longer.
    """

    def __init__(self, workload: Workload, max_tokens: int | None = None) -> None:
        self._requests = workload.requests
        self._max_tokens = max_tokens
        longest = max(request.output_tokens for request in workload.requests)
        if max_tokens is not None and longest > max_tokens:
            raise SimulationError(
                f"the longest answer of {workload.name!r} has {longest} tokens, and max_tokens is {max_tokens}; raise "
                "it, or cut the answers of the workload"
            )

    def spec(self, key: int) -> RequestSpec:
        """What a client asks for."""
        request = self._requests[key]
        return RequestSpec(
            request=RequestId(str(key)),
            # Nothing looks at the tokens: a range has the length and the slices of a prompt without its memory.
            prompt=cast(tuple[int, ...], range(request.prompt_tokens)),
            sampling=_GREEDY,
            max_tokens=request.output_tokens if self._max_tokens is None else self._max_tokens,
            deadline_at=_NEVER,
            user=request.user,
        )

    def output_tokens(self, key: int) -> int:
        """How long the answer is."""
        return self._requests[key].output_tokens

    def predictor(self, lengths: str | OutputLengths) -> OutputLengths:
        """The predictor of a name, ORACLE among them; one that is given is returned. Raises ConfigError."""
        if isinstance(lengths, OutputLengths):
            return lengths
        if lengths == ORACLE:
            return Oracle(lambda request: self.output_tokens(int(request.request)))
        return load_predictor(lengths)
