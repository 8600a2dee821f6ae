"""How long an answer will be: predictors of the number of output tokens. Pure state, no clock.

None looks into the future but `Oracle`, which a simulation asks for an upper bound.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

from common.errors import ConfigError
from services.scheduling.request import RequestSpec


class OutputLengths(ABC):
    """Predicts from the request, and learns from answers that ended."""

    @abstractmethod
    def observe(self, request: RequestSpec, tokens: int) -> None:
        """An answer to `request` ended after so many tokens: of one choice, their mean where there are several."""

    @abstractmethod
    def predict(self, request: RequestSpec) -> float | None:
        """Tokens that one choice is expected to have, at most its max_tokens; None: nothing is known yet."""


class MaxTokens(OutputLengths):
    """As many as the request allows: safe for memory, and far too many for work."""

    def observe(self, request: RequestSpec, tokens: int) -> None:
        """Learns nothing."""

    def predict(self, request: RequestSpec) -> float | None:
        """See OutputLengths."""
        return float(request.max_tokens)


class Oracle(OutputLengths):
    """Is told by `tokens_of`: the truth, or the truth with an error put into it."""

    def __init__(self, tokens_of: Callable[[RequestSpec], float]) -> None:
        self._tokens_of = tokens_of

    def observe(self, request: RequestSpec, tokens: int) -> None:
        """Learns nothing."""

    def predict(self, request: RequestSpec) -> float | None:
        """See OutputLengths."""
        return min(float(request.max_tokens), self._tokens_of(request))


class RunningMean(OutputLengths):
    """The mean of the last `window` answers."""

    def __init__(self, window: int = 512) -> None:
        if window < 1:
            raise ValueError(f"a mean over {window!r} answers; give at least one")
        self._recent: deque[int] = deque(maxlen=window)
        self._sum = 0

    def observe(self, request: RequestSpec, tokens: int) -> None:  # noqa: ARG002 - whoever asked
        """See OutputLengths."""
        if len(self._recent) == self._recent.maxlen:
            self._sum -= self._recent[0]
        self._recent.append(tokens)
        self._sum += tokens

    def predict(self, request: RequestSpec) -> float | None:
        """See OutputLengths."""
        return min(float(request.max_tokens), self._sum / len(self._recent)) if self._recent else None


class LengthWindow:
    """The last `window` lengths and a quantile of them, exact; O(log window) comparisons to learn one."""

    def __init__(self, quantile: float = 0.6, window: int = 512) -> None:
        if not 0.0 <= quantile <= 1.0 or window < 1:
            raise ValueError(f"quantile {quantile!r} over {window!r} answers; it is in [0, 1], over at least one")
        self._quantile = quantile
        self._window = window
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def observe(self, tokens: int) -> None:
        """One more; the oldest is forgotten where there are `window` already."""
        if len(self._recent) == self._window:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._recent.append(tokens)
        insort(self._sorted, tokens)

    def expected(self) -> float | None:
        """The quantile; None before the first."""
        if not self._sorted:
            return None
        return float(self._sorted[min(len(self._sorted) - 1, int(self._quantile * len(self._sorted)))])


class RunningQuantile(OutputLengths):
    """The quantile of the last `window` answers.

    The mean of so heavy a tail as output lengths have moves with single answers; the median does not, but says too
    little about memory.  0.6 is about the mean of the public chat traces.
    """

    def __init__(self, quantile: float = 0.6, window: int = 512) -> None:
        self._lengths = LengthWindow(quantile, window)

    def observe(self, request: RequestSpec, tokens: int) -> None:  # noqa: ARG002 - whoever asked
        """See OutputLengths."""
        self._lengths.observe(tokens)

    def predict(self, request: RequestSpec) -> float | None:
        """See OutputLengths."""
        expected = self._lengths.expected()
        return None if expected is None else min(float(request.max_tokens), expected)


class ClassQuantile(OutputLengths):
    """The quantile of the last `window` answers of the same class, which is the request's `user`.

    Until a class has `enough` answers those of all classes stand in for it, and for the first of all `guess` does:
    max_tokens, which clients often leave at the whole context, would fill the memory with a handful of requests.  At
    most `classes` are kept, the last seen: names come from clients.
    """

    def __init__(
        self, quantile: float = 0.6, window: int = 512, *, enough: int = 16, classes: int = 1024, guess: int = 256
    ) -> None:
        if min(enough, classes, guess) < 1:
            raise ValueError(f"enough {enough!r}, classes {classes!r}, guess {guess!r}; give at least 1 of each")
        self._guess = float(guess)
        self._quantile, self._window = quantile, window
        self._enough = enough
        self._most_classes = classes
        self._all = LengthWindow(quantile, window)
        self._classes: OrderedDict[str, LengthWindow] = OrderedDict()

    def observe(self, request: RequestSpec, tokens: int) -> None:
        """See OutputLengths."""
        self._all.observe(tokens)
        if (lengths := self._classes.get(request.user)) is None:
            if len(self._classes) == self._most_classes:
                self._classes.popitem(last=False)
            lengths = self._classes[request.user] = LengthWindow(self._quantile, self._window)
        self._classes.move_to_end(request.user)
        lengths.observe(tokens)

    def predict(self, request: RequestSpec) -> float | None:
        """See OutputLengths."""
        own = self._classes.get(request.user)
        expected = (self._all if own is None or len(own) < self._enough else own).expected()
        return min(float(request.max_tokens), self._guess if expected is None else expected)


PREDICTORS: Mapping[str, Callable[[], OutputLengths]] = MappingProxyType(
    {"quantile": RunningQuantile, "mean": RunningMean, "class": ClassQuantile, "max_tokens": MaxTokens}
)
"""By the name that mesh.yaml gives them."""


def load_predictor(name: str) -> OutputLengths:
    """A fresh predictor of PREDICTORS; raises ConfigError for a name that is not there."""
    if name not in PREDICTORS:
        raise ConfigError(f"output_lengths {name!r} is not known; choose one of {', '.join(sorted(PREDICTORS))}")
    return PREDICTORS[name]()
