"""All text work of the gateway, on threads of its own: the event loop never runs a tokeniser.

Two threads: one turns messages into prompts, one turns tokens into text, so that a long prompt delays no answer.
Grammars are looked at in a process (grammar_check).
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import PdmeshError
from common.messages.control import EmittedTokens
from services.gateway.lane.grammar_check import GrammarCheck
from services.gateway.lane.text_thread import TextThread
from services.text.chat_template import ChatTemplate, TemplateRefused
from services.text.choice import ChoiceRules, ChoiceText, TextDelta
from services.text.echo import EchoRules, PromptEcho
from services.text.tokenizer import Tokenizer
from services.text.tools import Tool


class TextTooLong(PdmeshError):
    """A text that cannot fit, which was found without encoding it."""

    def __init__(self, least_tokens: int) -> None:
        super().__init__(f"the text has at least {least_tokens} tokens")
        self.least_tokens = least_tokens


class LaneChoice:
    """The text of one choice: made, added to and looked at by `TextLane.push_many` alone."""

    __slots__ = ("_echo", "_has_ended", "_rules", "_text", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, rules: ChoiceRules, echo: PromptEcho | None = None) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self._echo = echo
        self._text: ChoiceText | None = None
        self._has_ended = False

    def push(self, event: EmittedTokens) -> TextDelta | None:
        """On the text thread: what the event adds; None where the choice has ended before it."""
        if self._has_ended:
            return None
        echo, self._echo = self._echo, None
        if echo is not None:
            echo.hear(event.prompt_logprobs)
        if self._text is None:
            # Here and not where the choice is opened: to make a decoder is text work, and a hop of its own would cost.
            self._text = ChoiceText(self._tokenizer, self._rules, 0 if echo is None else echo.characters())
        delta = self._text.push(event.tokens, event.finish, event.logprobs)
        if echo is not None:
            delta = echo.before(delta)
        self._has_ended = delta.finish is not None
        return delta


class TextLane:
    """The tokeniser and chat template of the served model, for the event loop that entered it.

    Use as `async with TextLane(...)`. Cancelling a call drops its result; the work itself may still be done.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._prompts = TextThread("pdmesh-prompts")
        self._answers = TextThread("pdmesh-answers")
        self._grammars = GrammarCheck()
        self.eos_ids = tokenizer.eos_ids
        self.vocab_size = tokenizer.vocab_size

    async def __aenter__(self) -> "TextLane":
        self._prompts.start(asyncio.get_running_loop())
        self._answers.start(asyncio.get_running_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(self._prompts.close(), self._answers.close(), self._grammars.close())

    async def encode_text(self, text: str, most: int) -> tuple[int, ...]:
        """The ids of a plain prompt, with what the model wants around it; TextTooLong only for more than `most`."""
        return await self._prompts.run(lambda: self._encode(text, most, add_special_tokens=True))

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], most: int, tools: Sequence[Tool] = (), *, must_call: bool = False
    ) -> tuple[int, ...]:
        """The ids of a conversation up to where the answer begins; TemplateRefused, or TextTooLong as above."""
        return await self._prompts.run(lambda: self._encode_chat(messages, most, tools, must_call))

    async def grammar_refusal(self, grammar: str) -> str | None:
        """Why no answer can be kept within `grammar`; None: one can. In a process of its own: it may take long."""
        return await self._grammars.refusal(grammar)

    def open_choices(self, rules: ChoiceRules, count: int, echo: EchoRules | None = None) -> tuple[LaneChoice, ...]:
        """The empty texts of the choices of one prompt, to be given to `push_many` one call at a time each.

        With `echo` each begins with the prompt.
        """
        prompt = None if echo is None else PromptEcho(self._tokenizer, echo)
        return tuple(LaneChoice(self._tokenizer, rules, prompt) for _ in range(count))

    async def push_many(self, events: Sequence[tuple[LaneChoice, EmittedTokens]]) -> list[TextDelta | None]:
        """Add each event's tokens to its choice, in one hop; None for an event of a choice that has ended before it."""
        return await self._answers.run(lambda: [choice.push(event) for choice, event in events])

    def _encode(self, text: str, most: int, *, add_special_tokens: bool) -> tuple[int, ...]:
        # Seconds of work for a text of megabytes, while every other prompt waits: not for one that cannot be served.
        if (least := self._tokenizer.least_tokens(text)) > most:
            raise TextTooLong(least)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _encode_chat(
        self, messages: Sequence[Mapping[str, Any]], most: int, tools: Sequence[Tool], must_call: bool
    ) -> tuple[int, ...]:
        if self._template is None:
            raise TemplateRefused("this model has no chat template; send a plain prompt to /v1/completions")
        return self._encode(self._template.render(messages, tools, must_call=must_call), most, add_special_tokens=False)
