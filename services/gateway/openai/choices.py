"""One choice of an answer: as it comes, and whole."""

from collections.abc import Sequence

import msgspec

from common.messages.control import FinishReason
from services.gateway.openai.types import Usage
from services.text.choice import TextDelta, TokenEntry


class ChoiceDelta(msgspec.Struct, frozen=True):
    """What came for one choice. The first of a request may be empty of text."""

    choice: int
    delta: TextDelta
    usage: Usage | None = None
    """Of the whole call up to here, this included, where the chunks are to tell it."""


class ChoiceAnswer(msgspec.Struct, frozen=True):
    """A whole choice."""

    text: str
    finish: FinishReason
    entries: tuple[TokenEntry, ...]


def joined(parts: Sequence[TextDelta]) -> ChoiceAnswer:
    """The choice of which these are all the parts; raises ValueError where the last does not end it."""
    finish = parts[-1].finish
    if finish is None:
        raise ValueError("a choice is joined when it has ended")
    return ChoiceAnswer(
        text="".join(part.text for part in parts),
        finish=finish,
        entries=tuple(entry for part in parts for entry in part.entries),
    )
