"""What users of instructor do, with a mesh at argv[1]: prints what came, as JSON. Run in .venv-clients."""

import asyncio
import json
import sys
from typing import Any, Literal

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict

MODES = (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS)
MESSAGES: Any = [{"role": "user", "content": "What is the sea like?"}]


class Sea(BaseModel):
    """What the sea is like."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["green", "blue", "grey"]
    is_calm: bool


async def come(at: dict[str, Any], model: str) -> dict[str, Any]:
    client = instructor.from_openai(AsyncOpenAI(**at), mode=instructor.Mode.JSON_SCHEMA)
    found = await client.chat.completions.create(
        model=model, messages=MESSAGES, response_model=Sea, max_tokens=200, max_retries=0
    )
    return found.model_dump()


def main(url: str, model: str) -> dict[str, Any]:
    at: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    found: dict[str, Any] = {"asynchronous": asyncio.run(come(at, model))}
    for mode in MODES:
        client = instructor.from_openai(OpenAI(**at), mode=mode)
        try:
            answer = client.chat.completions.create(
                model=model, messages=MESSAGES, response_model=Sea, max_tokens=200, max_retries=0
            )
            found[mode.value] = answer.model_dump()
        except Exception as error:
            found[mode.value] = repr(error)[:2000]
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
