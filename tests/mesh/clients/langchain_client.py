"""What users of langchain-openai do, with a mesh at argv[1]: prints what came, as JSON. Run in .venv-clients."""

import asyncio
import json
import sys
from typing import Any

from langchain_openai import ChatOpenAI, OpenAI

MESSAGES = [("system", "You are brief."), ("human", "Tell me about the sea.")]


async def come(chat: ChatOpenAI) -> dict[str, Any]:
    parts = [part async for part in chat.astream(MESSAGES)]
    return {
        "asynchronous": (await chat.ainvoke(MESSAGES)).content,
        "streamed": "".join(str(part.content) for part in parts),
        "streamed_tokens": sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata),
        "batch": [answer.content for answer in await chat.abatch([MESSAGES, MESSAGES])],
    }


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
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
