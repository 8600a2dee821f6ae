"""What of an answer must not depend on where it was computed, and how two answers differ in it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

LOGPROB_TOLERANCE: Final = 1e-3
"""Promise 1 in float32."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token of an answer. `logprob` is None for the first of an echoed prompt, which nothing comes before."""

    token: str
    logprob: float | None


class ChoiceEssence(msgspec.Struct, frozen=True):
    """One choice. `calls` are the tools it calls, as (name, arguments); their ids are made anew for each answer."""

    text: str
    finish_reason: str | None
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()


class Essence(msgspec.Struct, frozen=True):
    """One answer. Cached tokens are left out: they may depend on who computes."""

    choices: tuple[ChoiceEssence, ...]
    prompt_tokens: int
    completion_tokens: int


def essence_of(body: Mapping[str, Any]) -> Essence:
    """Of the body of an answer that is not streamed, chat or plain."""
    choices = sorted(body["choices"], key=lambda choice: int(choice["index"]))
    usage = body["usage"]
    return Essence(tuple(_choice([choice]) for choice in choices), usage["prompt_tokens"], usage["completion_tokens"])


def essence_of_events(events: Sequence[Mapping[str, Any]]) -> Essence:
    """Of the events of a streamed answer, the chunk of usage among them."""
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for event in events:
        for choice in event["choices"]:
            parts.setdefault(int(choice["index"]), []).append(choice)
    usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
    if usage is None:
        raise ValueError("a stream without a chunk of usage")
    choices = tuple(_choice(parts[index]) for index in sorted(parts))
    return Essence(choices, usage["prompt_tokens"], usage["completion_tokens"])


def logprob_error(one: Essence, other: Essence) -> float:
    """The largest difference between the logprobs of tokens at the same place."""
    pairs = [
        (mine.logprob, theirs.logprob)
        for mine_of, theirs_of in zip(one.choices, other.choices, strict=False)
        for mine, theirs in zip(mine_of.logprobs, theirs_of.logprobs, strict=False)
    ]
    return max((abs(a - b) for a, b in pairs if a is not None and b is not None), default=0.0)


def difference(found: Essence, expected: Essence) -> str | None:
    """Words on the first thing in which they differ; None where they are the same."""
    for what in ("prompt_tokens", "completion_tokens"):
        if getattr(found, what) != getattr(expected, what):
            return f"{what}: {getattr(found, what)} and not {getattr(expected, what)}"
    if len(found.choices) != len(expected.choices):
        return f"{len(found.choices)} choices and not {len(expected.choices)}"
    for index, (mine, theirs) in enumerate(zip(found.choices, expected.choices, strict=True)):
        if (words := _choice_difference(mine, theirs)) is not None:
            return f"choice {index}: {words}"
    error = logprob_error(found, expected)
    return None if error <= LOGPROB_TOLERANCE else f"a logprob differs by {error:.1e}"


def _choice_difference(found: ChoiceEssence, expected: ChoiceEssence) -> str | None:
    for what in ("text", "finish_reason", "calls"):
        if getattr(found, what) != getattr(expected, what):
            return f"{what} {getattr(found, what)!r} and not {getattr(expected, what)!r}"
    if [one.token for one in found.logprobs] != [one.token for one in expected.logprobs]:
        return "other tokens with logprobs"
    if [one.logprob is None for one in found.logprobs] != [one.logprob is None for one in expected.logprobs]:
        return "logprobs are null elsewhere"
    return None


def _choice(parts: Sequence[Mapping[str, Any]]) -> ChoiceEssence:
    """From one whole choice, or from its chunks in order."""
    messages = [part.get("message") or part.get("delta") or {"content": part.get("text")} for part in parts]
    finishes = [part["finish_reason"] for part in parts if part.get("finish_reason")]
    return ChoiceEssence(
        text="".join(message.get("content") or "" for message in messages),
        finish_reason=finishes[-1] if finishes else None,
        logprobs=tuple(entry for part in parts for entry in _logprobs(part.get("logprobs"))),
        calls=_calls(messages),
    )


def _logprobs(told: Mapping[str, Any] | None) -> list[TokenLogprob]:
    if told is None:
        return []
    if "content" in told:
        return [TokenLogprob(entry["token"], entry["logprob"]) for entry in told["content"] or ()]
    return [TokenLogprob(*pair) for pair in zip(told["tokens"], told["token_logprobs"], strict=True)]


def _calls(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """A streamed call comes in pieces with its index; a whole one has none, and stands at its place."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for message in messages:
        for place, call in enumerate(message.get("tool_calls") or ()):
            index, function = call.get("index", place), call.get("function") or {}
            names[index] = names.get(index, "") + (function.get("name") or "")
            arguments[index] = arguments.get(index, "") + (function.get("arguments") or "")
    return tuple((names[index], arguments[index]) for index in sorted(names))
