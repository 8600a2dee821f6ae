"""Structured output and tools through a whole mesh: real grammars, tokens that know nothing, the openai SDK."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from common.config.types import InstanceConfig
from services.engine.runner import Runner
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from tests.mesh.inprocess import in_process_mesh, mesh_config

MODEL = "smollm2"
MESSAGES: Any = [{"role": "user", "content": "What did you find on the beach?"}]


class Find(BaseModel):
    """Something found; bounded, since the tokens come by chance."""

    kind: Literal["shell", "stone"]
    size: int = Field(ge=1, le=99)
    is_wet: bool
    note: str = Field(max_length=6)


class Walk(BaseModel):
    """Go somewhere."""

    way: Literal["left", "right"]
    steps: int = Field(ge=1, le=9)


FIND: dict[str, Any] = {**Find.model_json_schema(), "additionalProperties": False}
SHELF: dict[str, Any] = {
    "type": "object",
    "properties": {
        "finds": {"type": "array", "items": {"$ref": "#/$defs/find"}, "minItems": 1, "maxItems": 2},
        "weight": {"anyOf": [{"type": "number", "minimum": -1, "maximum": 1}, {"type": "null"}]},
    },
    "required": ["finds", "weight"],
    "additionalProperties": False,
    "$defs": {"find": FIND},
}
TOOLS: Any = [openai.pydantic_function_tool(Walk), openai.pydantic_function_tool(Find)]
ASKED: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 1.5, "max_tokens": 400}


def as_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def roomy(instance: InstanceConfig) -> Runner:
    """A byte a token: the words about tools alone are a thousand."""
    layout = deterministic_layout(block_size=instance.block_size, order=instance.order)
    return DeterministicRunner(layout, 1024, vocab_size=258)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[AsyncOpenAI]:
    """A client of a mesh, which must hold nothing in the end."""
    async with in_process_mesh(mesh_config(), folder, build=roomy) as mesh:
        url = f"{mesh.gateway.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            yield client


async def test_the_sdk_parses_a_pydantic_model_streamed_or_not(deterministic_folder: Path) -> None:
    async with serving(deterministic_folder) as client:
        whole = await client.chat.completions.parse(**ASKED, response_format=Find, seed=3)
        found = whole.choices[0].message.parsed
        assert isinstance(found, Find)
        assert whole.choices[0].finish_reason == "stop"
        async with client.chat.completions.stream(**ASKED, response_format=Find, seed=3) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == found

        def by_the_blocking_one() -> tuple[Find | None, Find | None]:
            with OpenAI(base_url=str(client.base_url), api_key="none", max_retries=0, timeout=60) as blocking:
                whole = blocking.chat.completions.parse(**ASKED, response_format=Find, seed=3)
                with blocking.chat.completions.stream(**ASKED, response_format=Find, seed=3) as stream:
                    final = stream.get_final_completion()
            return whole.choices[0].message.parsed, final.choices[0].message.parsed

        assert await asyncio.to_thread(by_the_blocking_one) == (found, found)


async def test_the_split_does_not_show(deterministic_folder: Path) -> None:
    async with serving(deterministic_folder) as client:
        for how in ({"temperature": 0}, {"seed": 11}):
            texts = []
            for split in (0, 9, "full"):
                answer = await client.chat.completions.create(
                    **{**ASKED, **how}, n=2, response_format=as_format(SHELF), extra_body={"pdmesh": {"split": split}}
                )
                texts.append([choice.message.content for choice in answer.choices])
            assert texts[0] == texts[1] == texts[2]


async def test_answers_by_chance_are_valid(deterministic_folder: Path) -> None:
    async with serving(deterministic_folder) as client:
        found = set()
        for seed in range(3):
            answer = await client.chat.completions.create(**ASKED, response_format=as_format(SHELF), n=4, seed=seed)
            for choice in answer.choices:
                assert choice.finish_reason == "stop"
                found.add(choice.message.content)
                jsonschema.validate(json.loads(choice.message.content or ""), SHELF)
        assert len(found) == 12


async def test_what_is_cut_off_has_finished_by_length(deterministic_folder: Path) -> None:
    async with serving(deterministic_folder) as client:
        answer = await client.chat.completions.create(
            **{**ASKED, "max_tokens": 12}, response_format={"type": "json_object"}, seed=1
        )
        assert (answer.choices[0].message.content or "").startswith("{")
        assert answer.choices[0].finish_reason == "length"
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(**{**ASKED, "max_tokens": 12}, response_format=Find)
        spoken = await client.chat.completions.create(**{**ASKED, "max_tokens": 20}, tools=TOOLS, seed=2)
        assert spoken.choices[0].message.content
        assert spoken.choices[0].message.tool_calls is None


async def test_other_parameters_hold_within_a_grammar(deterministic_folder: Path) -> None:
    async with serving(deterministic_folder) as client:
        asked = {**ASKED, "response_format": as_format(FIND), "seed": 5}
        plain = await client.chat.completions.create(**asked)
        text = plain.choices[0].message.content or ""
        more: Any = {"min_tokens": 300, "ignore_eos": True}
        longer = await client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, extra_body=more)
        jsonschema.validate(json.loads(longer.choices[0].message.content or ""), FIND)
        assert longer.choices[0].finish_reason == "stop"
        assert longer.choices[0].logprobs is not None
        stopped = await client.chat.completions.create(**asked, stop=["size"])
        assert stopped.choices[0].message.content == text[: text.index("size")]


async def test_required_calls_have_the_form_and_pydantic_reads_them(deterministic_folder: Path) -> None:
    async with serving(deterministic_folder) as client:
        names = set()
        for seed in range(4):
            answer = await client.chat.completions.parse(
                **ASKED, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed
            )
            (choice,) = answer.choices
            assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
            (call,) = choice.message.tool_calls or ()
            assert isinstance(call.function.parsed_arguments, Walk | Find)
            names.add(call.function.name)
        assert names == {"Walk", "Find"}
        several = await client.chat.completions.create(**ASKED, tools=TOOLS, tool_choice="required", n=2, seed=1)
        counts = []
        for choice in several.choices:
            calls: Any = choice.message.tool_calls
            counts.append(len(calls))
            for call in calls if choice.finish_reason == "tool_calls" else calls[:-1]:
                {"Walk": Walk, "Find": Find}[call.function.name].model_validate_json(call.function.arguments)
        assert max(counts) > 1


async def test_a_named_tool_is_called_once_streamed_or_not_and_its_result_is_taken(deterministic_folder: Path) -> None:
    async with serving(deterministic_folder) as client:
        named: Any = {"type": "function", "function": {"name": "Walk"}}
        asked = {**ASKED, "tools": TOOLS, "tool_choice": named, "seed": 4}
        whole = await client.chat.completions.parse(**asked)
        assert whole.choices[0].finish_reason == "tool_calls"
        (call,) = whole.choices[0].message.tool_calls or ()
        assert isinstance(call.function.parsed_arguments, Walk)
        async with client.chat.completions.stream(**asked) as stream:
            final = await stream.get_final_completion()
        (streamed,) = final.choices[0].message.tool_calls or ()
        assert streamed.function.arguments == call.function.arguments
        turns = [*MESSAGES, whole.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
        after = await client.chat.completions.create(**{**ASKED, "messages": turns, "max_tokens": 5}, tools=TOOLS)
        assert after.choices[0].finish_reason in ("length", "stop"), "any: the id of the call is new in each run"
