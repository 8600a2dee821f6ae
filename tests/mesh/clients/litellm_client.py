"""What users of litellm do, with a mesh at argv[1]: prints what came, as JSON. Run in .venv-clients."""

import asyncio
import json
import sys
from typing import Any

import litellm

MESSAGES = [{"role": "user", "content": "Tell me about the sea."}]
ASKED: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24, "num_retries": 0}
WALK: dict[str, Any] = {
    "type": "object",
    "properties": {"way": {"enum": ["left", "right"]}, "steps": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["way", "steps"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "walk", "description": "Go somewhere.", "parameters": WALK}}]


async def come(at: dict[str, Any]) -> tuple[str, str]:
    whole = await litellm.acompletion(**ASKED, **at)
    parts = [part async for part in await litellm.acompletion(**ASKED, **at, stream=True)]
    return whole.choices[0].message.content, "".join(part.choices[0].delta.content or "" for part in parts)


def called(at: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """The name and the arguments of the tools called, whole and streamed."""
    more: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    asked = {**ASKED, **at, **more}
    answers = [litellm.completion(**asked), litellm.stream_chunk_builder([*litellm.completion(**asked, stream=True)])]
    return [
        [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls or ()]
        for answer in answers
    ]


def error_of(at: dict[str, Any], **changed: Any) -> str:
    try:
        litellm.completion(**{**ASKED, **at, **changed})
    except Exception as error:
        return type(error).__name__
    return "none"


def main(url: str, model: str) -> dict[str, Any]:
    at = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
    whole = litellm.completion(**ASKED, **at)
    parts = [*litellm.completion(**ASKED, **at, stream=True, stream_options={"include_usage": True})]
    usages = [part.usage.completion_tokens for part in parts if getattr(part, "usage", None)]
    text = litellm.text_completion(**{**at, "model": f"text-completion-openai/{model}"}, prompt="the sea", max_tokens=8)
    return {
        "whole": whole.choices[0].message.content,
        "tokens": whole.usage.completion_tokens,
        "streamed": "".join(part.choices[0].delta.content or "" for part in parts if part.choices),
        "streamed_tokens": usages[-1],
        "asynchronous": asyncio.run(come(at)),
        "plain": text.choices[0].text,
        "called": called(at),
        "too_long": error_of(at, messages=[{"role": "user", "content": "x" * 9000}]),
        "unknown_model": error_of(at, model="openai/other"),
        "mistaken": error_of(at, temperature=9),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
