"""What keeps an answer within a grammar, as the engine sees it. No torch, and no grammar library."""

from abc import ABC, abstractmethod
from collections.abc import Collection

from common.errors import GrammarRefused


class Guide(ABC):
    """The place of one choice within its grammar. Owned by one sequence, used on the engine's thread.

    The same tokens always lead to the same place, so that neither a split nor a batch can show.
    """

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether the grammar is satisfied and nothing may follow."""

    @abstractmethod
    def allowed(self) -> bytes:
        """One byte for each token id of the model: not 0 where the token may come next.

        Raises GrammarRefused where the grammar turns out to be too large to be followed.
        """

    @abstractmethod
    def may_end(self) -> bool:
        """Whether the tokens so far satisfy the grammar."""

    @abstractmethod
    def advance(self, token: int) -> None:
        """`token`, which was allowed, has been sampled. Never raises: what is wrong shows at the next `allowed`."""

    @abstractmethod
    def fork(self) -> "Guide":
        """Another guide at the same place."""


class Grammar(ABC):
    """A compiled grammar. Shared: it is never at any place itself."""

    @abstractmethod
    def guide(self) -> Guide:
        """A guide at the beginning."""


def allowed_next(guide: Guide, stop_tokens: Collection[int], *, is_too_early: bool) -> bytes:
    """The tokens that may come next, as `Guide.allowed`, stop tokens among them where the grammar may end.

    `is_too_early` (fewer than min_tokens so far) forbids the stop tokens, unless nothing else is left: a grammar that
    must end does.  Raises GrammarRefused, as it does when nothing at all is allowed.
    """
    allowed = bytearray(guide.allowed())
    may_end = guide.may_end()
    known = [token for token in stop_tokens if 0 <= token < len(allowed)]
    for token in known:
        allowed[token] = False
    if may_end and not (is_too_early and any_allowed(allowed)):
        for token in known:
            allowed[token] = True
    if not any_allowed(allowed):
        raise GrammarRefused("the grammar allows no token of this model here")
    return bytes(allowed)


def any_allowed(allowed: bytearray) -> bool:
    """Whether any byte is not 0."""
    return allowed.count(0) < len(allowed)
