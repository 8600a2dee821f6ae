"""A model's chat template: messages become the prompt text, exactly as transformers renders it."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import msgspec
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.errors import ModelError, PdmeshError
from services.text.tool_preface import plain_messages
from services.text.tools import OPENING, Tool


class TemplateRefused(PdmeshError):
    """The template does not take these messages; the message is the template's own or says why."""


class _GenerationTag(jinja2.ext.Extension):
    """Accepts {% generation %}, which marks an assistant's words for training and renders to its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders messages. Templates come with models and are not trusted: they run in a sandbox.

    `local_time` is what the template's strftime_now shows.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], local_time: Callable[[], datetime]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: local_time().strftime(pattern)
        self._special_tokens = dict(special_tokens)
        self._teaches_calls = _teaches_calls(source)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template cannot be parsed: {error}") from error

    @classmethod
    def load(
        cls, folder: Path, special_tokens: Mapping[str, str], local_time: Callable[[], datetime]
    ) -> "ChatTemplate | None":
        """The template of a model folder; None where the model has none; raises ModelError."""
        source = _read_source(folder)
        return None if source is None else cls(source, special_tokens, local_time)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = (), *, must_call: bool = False
    ) -> str:
        """The prompt that ends where the assistant's answer begins; raises TemplateRefused.

        A template that does not teach our form of calls is told of `tools`, and of earlier calls, in plain words.
        """
        if self._teaches_calls:
            shown, described = [dict(message) for message in messages], [tool.described() for tool in tools] or None
        else:
            shown, described = plain_messages(messages, tools, must_call=must_call), None
        variables = {**self._special_tokens, "messages": shown, "tools": described}
        try:
            return self._template.render(**variables, documents=None, add_generation_prompt=True)
        except Exception as error:
            # A template is foreign code: whatever it raises is about these messages.
            raise TemplateRefused(f"the model's chat template refused the messages: {error}") from error


def _read_source(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        value = msgspec.json.decode(config.read_bytes(), type=dict[str, Any]).get("chat_template")
    except msgspec.MsgspecError as error:
        raise ModelError(f"cannot read {str(config)!r}: {error}") from error
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default")
    return None if value is None else str(value)


def _teaches_calls(source: str) -> bool:
    """Whether the template tells the model of tools, and to call them as services.text.tools has it (Hermes, Qwen)."""
    return "tools" in source and OPENING in source and "arguments" in source and "<function=" not in source


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters; the models were trained on plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
