"""What users of instructor do, with a mesh at argv[1]: prints what came, as JSON. Run in .venv-clients."""

import asyncio
import json
import sys
from typing import Any, Literal

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

MODES = (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS)
MESSAGES: Any = [{"role": "user", "content": "What is the sea like?"}]


class Sea(BaseModel):
    """What the sea is like."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["green", "blue", "grey"]
    is_calm: bool


class Shore(BaseModel):
    """Where land and sea meet. A choice among words is none until it is whole, so that there is none here."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=6)
    steps: int = Field(ge=1, le=99)
    is_wet: bool


async def come(at: dict[str, Any], model: str) -> dict[str, Any]:
    client = instructor.from_openai(AsyncOpenAI(**at), mode=instructor.Mode.JSON_SCHEMA)
    found = await client.chat.completions.create(
        model=model, messages=MESSAGES, response_model=Sea, max_tokens=200, max_retries=0
    )
    return found.model_dump()


def partial(at: dict[str, Any], model: str, mode: instructor.Mode) -> list[dict[str, Any]]:
    """The object as it grew."""
    client = instructor.from_openai(OpenAI(**at), mode=mode)
    growing = client.chat.completions.create_partial(
        model=model, messages=MESSAGES, response_model=Shore, max_tokens=200, max_retries=0
    )
    return [one.model_dump() for one in growing]


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
    found["partial"] = [partial(at, model, mode) for mode in MODES]
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
