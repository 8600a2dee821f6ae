"""What is asked: one request for each thing that the API can do and that a split could disturb."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

CHAT: Final = "/v1/chat/completions"
PLAIN: Final = "/v1/completions"

_SAMPLED: Final[Mapping[str, Any]] = {"temperature": 0.8, "seed": 7}
_GREEDY: Final[Mapping[str, Any]] = {"temperature": 0}
_STORY: Final = "Tell me a story about a lighthouse keeper who finds a message in a bottle. Begin with the storm."
_CITY: Final = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}, "million": {"type": "boolean"}},
            "required": ["name", "million"],
            "additionalProperties": False,
        },
    },
}
_WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
            "required": ["place", "unit"],
        },
    },
}


class Question(msgspec.Struct, frozen=True):
    """One request: everything but the model, the split and whether it is streamed."""

    name: str
    path: str
    body: Mapping[str, Any]
    streams: bool = True
    """Whether it is asked streamed too."""


def _chat(name: str, text: str = _STORY, **more: Any) -> Question:
    return Question(name, CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 16, **_GREEDY, **more})


def _plain(name: str, prompt: Any = "The storm came over the lighthouse at night, and", **more: Any) -> Question:
    return Question(name, PLAIN, {"prompt": prompt, "max_tokens": 16, **_GREEDY, **more})


QUESTIONS: Final = (
    _chat("chat, greedy"),
    _chat(
        "chat, a system message and turns",
        messages=[
            {"role": "system", "content": "You answer in one sentence."},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital of France is Paris."},
            {"role": "user", "content": "And of Norway?"},
        ],
    ),
    _chat("a long prompt", text=" ".join([_STORY] * 20)),
    _chat("other scripts and emoji", text="日本で一番高い山は何ですか？ 🗻 Ответьте кратко."),
    _chat("one token", max_tokens=1),
    _chat("seed, temperature", **_SAMPLED),
    _chat("seed, top_p", top_p=0.9, **_SAMPLED),
    _chat("seed, top_k", top_k=20, **_SAMPLED),
    _chat("seed, min_p", min_p=0.05, **_SAMPLED),
    _chat("n = 3", n=3, **_SAMPLED),
    _chat("logprobs, top_logprobs", logprobs=True, top_logprobs=5),
    _chat("n = 2 with logprobs", n=2, logprobs=True, **_SAMPLED),
    _chat("frequency and presence penalty", frequency_penalty=0.8, presence_penalty=0.6),
    _chat("repetition_penalty", repetition_penalty=1.3),
    _chat("logit_bias", logit_bias={"28": 4.0, "30": -100.0}),
    _chat("stop", stop=["the", ". "], max_tokens=32),
    _chat("min_tokens, ignore_eos", text="Say hello.", min_tokens=24, ignore_eos=True, max_tokens=24),
    _chat("max_completion_tokens", max_tokens=None, max_completion_tokens=5),
    _chat("response_format: json_object", text="Name a city and its country.", response_format={"type": "json_object"}),
    _chat("response_format: json_schema", text="What is the capital of Norway?", response_format=_CITY, max_tokens=40),
    _chat("json_schema, seed", text="Name any city.", response_format=_CITY, max_tokens=40, **_SAMPLED),
    _chat("tools: required", text="Is it cold in Oslo?", tools=[_WEATHER], tool_choice="required", max_tokens=60),
    _chat("tools: auto", text="Say hello.", tools=[_WEATHER], tool_choice="auto"),
    _plain("completion, greedy"),
    _plain("completion, token ids", prompt=[504, 9575, 1761, 690, 260, 13311, 418, 1990, 28, 284]),
    _plain("completion, logprobs", logprobs=3),
    _plain("completion, n = 2", n=2, **_SAMPLED),
    _plain("completion, a batch of prompts", prompt=["The storm came", "In the morning the sea", "Nobody knew"]),
    _plain("completion, a batch with n = 2", prompt=["The storm came", "Nobody knew"], n=2, **_SAMPLED),
    _plain("completion, echo", echo=True),
)
"""Token ids and biases are of any vocabulary of more than 20,000 tokens."""
