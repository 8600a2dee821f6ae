"""What users of langchain-openai do, with a mesh at argv[1]: prints what came, as JSON. Run in .venv-clients."""

import asyncio
import json
import sys
from typing import Any, Literal

from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

MESSAGES = [("system", "You are brief."), ("human", "Tell me about the sea.")]


class Walk(BaseModel):
    """Go somewhere."""

    way: Literal["left", "right"]
    steps: int = Field(ge=1, le=9)


async def come(chat: ChatOpenAI) -> dict[str, Any]:
    parts = [part async for part in chat.astream(MESSAGES)]
    return {
        "asynchronous": (await chat.ainvoke(MESSAGES)).content,
        "streamed": "".join(str(part.content) for part in parts),
        "streamed_tokens": sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata),
        "batch": [answer.content for answer in await chat.abatch([MESSAGES, MESSAGES])],
    }


def structured(chat: ChatOpenAI) -> dict[str, Any]:
    """A model's object in each way that there is, and the tools that it called."""
    found: dict[str, Any] = {}
    for method in ("json_schema", "function_calling"):
        found[method] = chat.with_structured_output(Walk, method=method).invoke(MESSAGES).model_dump()
    called = chat.bind_tools([Walk], tool_choice="any", parallel_tool_calls=False)
    found["called"] = [(call["name"], call["args"]) for call in called.invoke(MESSAGES).tool_calls]
    first, *parts = called.stream(MESSAGES)
    found["called_streamed"] = [(call["name"], call["args"]) for call in sum(parts, first).tool_calls]
    return found


def error_of(chat: ChatOpenAI) -> str:
    try:
        chat.invoke("x" * 9000)
    except Exception as error:
        return str(error)
    return "none"


def main(url: str, model: str) -> dict[str, Any]:
    at: dict[str, Any] = {"model": model, "base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(**at, temperature=0, max_tokens=24, stream_usage=True)
    whole = chat.invoke(MESSAGES)
    return {
        "whole": whole.content,
        "tokens": whole.usage_metadata["output_tokens"] if whole.usage_metadata else None,
        **asyncio.run(come(chat)),
        "plain": OpenAI(**at, temperature=0, max_tokens=8).invoke("the sea"),
        "too_long": error_of(chat),
        "structured": structured(ChatOpenAI(**at, temperature=0, max_tokens=200)),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
