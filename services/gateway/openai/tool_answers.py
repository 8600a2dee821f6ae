"""Calls in answers, in the API's form: whole, and as they come. Pure."""

from collections.abc import Sequence
from typing import Final

from common.messages.control import FinishReason
from services.gateway.openai.tools import CalledFunction, FunctionDelta, ToolCall, ToolCallDelta
from services.gateway.openai.types import ChatDelta, ChatMessage
from services.text.choice import TextDelta
from services.text.tool_calls import CallEvent, CallGrown, CallOpened, CallReader, Words

CALLED: Final = "tool_calls"
"""The finish reason of an answer that ends with its calls."""


class CallingChoice:
    """One choice of an answer that may call tools; the ids of its calls begin with `call_id`.

    Its text is read once: as a whole, or part by part.
    """

    def __init__(self, call_id: str) -> None:
        self._call_id = call_id
        self._reader = CallReader()

    def whole(self, text: str, finish: FinishReason) -> tuple[ChatMessage, str]:
        """The message, and why it ended. A call that was cut off has what there is of it."""
        events = [*self._reader.push(text), *self._reader.flush()]
        words = "".join(event.text for event in events if isinstance(event, Words))
        names = [event.name for event in events if isinstance(event, CallOpened)]
        calls = [ToolCall(self._id(i), CalledFunction(name, _arguments(events, i))) for i, name in enumerate(names)]
        if not calls:
            return ChatMessage(words), self.finish_word(finish)
        return ChatMessage(words or None, tool_calls=calls), self.finish_word(finish)

    def push(self, delta: TextDelta) -> list[ChatDelta]:
        """What `delta` adds to the message; nothing while it cannot be told whether a call begins."""
        events = self._reader.push(delta.text)
        if delta.finish is not None:
            events += self._reader.flush()
        return [self._delta(event) for event in events]

    def finish_word(self, finish: FinishReason) -> str:
        """Why it ended, once all of its text has been read: `tool_calls` where its calls are whole."""
        return CALLED if finish is FinishReason.STOP and self._reader.has_called else finish.value

    def _delta(self, event: CallEvent) -> ChatDelta:
        match event:
            case Words(text):
                return ChatDelta(content=text)
            case CallOpened(index, name):
                opened = ToolCallDelta(index, FunctionDelta("", name), self._id(index), "function")
                return ChatDelta(tool_calls=[opened])
            case CallGrown(index, arguments):
                return ChatDelta(tool_calls=[ToolCallDelta(index, FunctionDelta(arguments))])

    def _id(self, index: int) -> str:
        return f"{self._call_id}-{index}"


def _arguments(events: Sequence[CallEvent], index: int) -> str:
    return "".join(event.arguments for event in events if isinstance(event, CallGrown) and event.index == index)
