"""Every way a body can be wrong is an error that names the parameter; what is right becomes a call."""

import json
from typing import Any

import msgspec
import pytest

from common.messages.sampling import SamplingParams
from services.gateway.openai.errors import ApiError
from services.gateway.openai.requests import (
    Call,
    CallRules,
    ChatPrompt,
    TextPrompt,
    TokenPrompt,
    parse_chat,
    parse_completion,
)

RULES = CallRules("m", allow_placement_override=False, vocab_size=256)
OPEN_RULES = msgspec.structs.replace(RULES, allow_placement_override=True)
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
PLAIN = {"model": "m", "prompt": "hello"}


def chat(rules: CallRules = RULES, **fields: Any) -> Call:
    return parse_chat(json.dumps({**HELLO, **fields}).encode(), rules, 77)


def plain(rules: CallRules = RULES, **fields: Any) -> Call:
    return parse_completion(json.dumps({**PLAIN, **fields}).encode(), rules, 77)


def refusal(body: dict[str, Any], rules: CallRules = RULES) -> ApiError:
    parse = parse_chat if "messages" in body else parse_completion
    with pytest.raises(ApiError) as caught:
        parse(json.dumps(body).encode(), rules, 77)
    return caught.value


BAD_VALUES = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 1.1),
    ("n", 0),
    ("n", 17),
    ("n", True),
    ("max_tokens", 0),
    ("max_tokens", "many"),
    ("min_tokens", -1),
    ("seed", 2**63),
    ("seed", "x"),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a"] * 17),
    ("stop", [1]),
    ("stop", "x" * 257),
    ("repetition_penalty", 0),
    ("frequency_penalty", 2.5),
    ("presence_penalty", -2.5),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"five": 1}),
    ("logit_bias", {"5": None}),
    ("logit_bias", {"256": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", [5]),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("ignore_eos", 1),
    ("pdmesh", {"split": 5}),
    ("pdmesh", {}),
    ("tools", []),
    ("response_format", {"type": "xml"}),
    ("best_of", 2),
    ("nonsense", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
@pytest.mark.parametrize("base", [HELLO, PLAIN], ids=["chat", "plain"])
def test_a_bad_value_is_a_400_that_names_its_parameter(base: dict[str, Any], name: str, value: Any) -> None:
    error = refusal({**base, name: value})
    assert error.status == 400
    assert error.body.type == "invalid_request_error"
    assert error.body.param is not None
    assert error.body.param.split("[")[0].split(".")[0] == name
    assert name in error.body.message


@pytest.mark.parametrize(
    ("base", "fields", "param"),
    [
        (HELLO, {"messages": []}, "messages"),
        (HELLO, {"messages": "hello"}, "messages"),
        (HELLO, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (HELLO, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (HELLO, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (HELLO, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (HELLO, {"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls"),
        (
            HELLO,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        (HELLO, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        (HELLO, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        (HELLO, {"logprobs": 1}, "logprobs"),
        (HELLO, {"top_logprobs": 2}, "top_logprobs"),
        (HELLO, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (HELLO, {"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        (HELLO, {"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        (HELLO, {"stream": True, "stream_options": {"chunks": 1}}, "stream_options.chunks"),
        (HELLO, {"prompt": "x"}, "prompt"),
        (PLAIN, {"prompt": None}, "prompt"),
        (PLAIN, {"prompt": ["a", 5]}, "prompt[1]"),
        (PLAIN, {"prompt": [[1], [256]]}, "prompt[1]"),
        (PLAIN, {"prompt": ["a"] * 129}, "prompt"),
        (PLAIN, {"prompt": ["a"] * 17, "n": 16}, "n"),
        (PLAIN, {"prompt": [1, 256]}, "prompt"),
        (PLAIN, {"prompt": [1, True]}, "prompt"),
        (PLAIN, {"prompt": [1, "a"]}, "prompt"),
        (PLAIN, {"logprobs": True}, "logprobs"),
        (PLAIN, {"logprobs": 21}, "logprobs"),
        (PLAIN, {"echo": 1}, "echo"),
        (PLAIN, {"suffix": "x"}, "suffix"),
        (PLAIN, {"max_completion_tokens": 5}, "max_completion_tokens"),
        (PLAIN, {"model": None}, "model"),
    ],
)
def test_what_only_one_endpoint_takes(base: dict[str, Any], fields: dict[str, Any], param: str) -> None:
    error = refusal({**base, **fields})
    assert (error.status, error.body.param) == (400, param)


def test_another_model_is_a_404_that_names_both() -> None:
    error = refusal({**HELLO, "model": "gpt-4o"})
    assert (error.status, error.body.code, error.body.param) == (404, "model_not_found", "model")
    assert "'gpt-4o'" in error.body.message
    assert "'m'" in error.body.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'{"a": NaN}', b"\xff\xfe", b'{"a":"\\ud800"}', b'{"a":"\\ud800x"}', b"[" * 99_999]
)
def test_what_is_not_a_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(body, RULES, 77)
    assert (caught.value.status, caught.value.body.code) == (400, "invalid_json")


def test_a_misspelt_parameter_gets_a_hint() -> None:
    assert "did you mean 'temperature'?" in refusal({**HELLO, "temprature": 1}).body.message


def test_the_message_shows_the_value_and_what_was_allowed() -> None:
    assert refusal({**HELLO, "temperature": 3}).body.message == "temperature=3: expected `float` <= 2.0"


def test_the_placement_setting_is_named_to_who_may_not_use_it() -> None:
    assert "allow_placement_override" in refusal({**HELLO, "pdmesh": {"split": 1}}).body.message


@pytest.mark.parametrize("split", ["full", 0, 17, 1, 1.0, 0.5])
def test_a_split_keeps_its_type(split: str | int | float) -> None:
    call = chat(OPEN_RULES, pdmesh={"split": split})
    assert (call.split, type(call.split)) == (split, type(split))


@pytest.mark.parametrize("split", ["half", -1, 1.5, True])
def test_a_bad_split_is_named(split: Any) -> None:
    assert refusal({**HELLO, "pdmesh": {"split": split}}, OPEN_RULES).body.param == "pdmesh.split"


def test_nulls_and_bookkeeping_fields_have_no_effect() -> None:
    bookkeeping: dict[str, Any] = {"metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    nulls: dict[str, Any] = dict.fromkeys(
        ["temperature", "stop", "tools", "logit_bias", "stream_options", "seed", "anything"]
    )
    answer = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None}
    with_answer = [*HELLO["messages"], answer]
    plain_answer = [*HELLO["messages"], {"role": "assistant", "content": "x"}]
    assert chat(**bookkeeping, **nulls, messages=with_answer) == chat(messages=plain_answer)


def test_the_user_is_kept_and_cut() -> None:
    assert chat(user="ann").user == "ann"
    assert chat(user="x" * 1000).user == "x" * 128
    assert chat().user == chat(user=None).user == ""
    assert refusal({**HELLO, "user": 5}).body.param == "user"


def test_the_defaults_of_a_chat() -> None:
    assert chat() == Call(
        prompts=(ChatPrompt(({"role": "user", "content": "hello"},)),),
        sampling=SamplingParams(temperature=1.0, seed=77),
        max_tokens=None,
        default_max_tokens=None,
        choices=1,
        stops=(),
        min_tokens=0,
        ignore_eos=False,
        split=None,
        stream=False,
        include_usage=False,
    )


def test_the_defaults_of_a_plain_completion() -> None:
    call = plain()
    assert (call.prompts, call.max_tokens, call.default_max_tokens) == ((TextPrompt("hello"),), None, 16)
    assert (call.echo, call.is_seeded) == (False, False)


def test_everything_given_arrives() -> None:
    fields: dict[str, Any] = {
        "temperature": 0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 5,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.2,
        "logit_bias": {"7": -100},
    }
    call = chat(
        **fields,
        logprobs=True,
        top_logprobs=3,
        max_completion_tokens=9,
        n=3,
        stop=["a", "b"],
        min_tokens=2,
        ignore_eos=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert call.sampling == SamplingParams(**{**fields, "logit_bias": {7: -100.0}}, logprobs=3)
    assert (call.max_tokens, call.choices, call.stops, call.min_tokens) == (9, 3, ("a", "b"), 2)
    assert (call.ignore_eos, call.stream, call.include_usage, call.usage_so_far) == (True, True, True, False)


@pytest.mark.parametrize("included", [True, False])
def test_usage_so_far_is_told_beside_that_of_the_end_only(included: bool) -> None:
    call = chat(stream=True, stream_options={"include_usage": included, "continuous_usage_stats": True})
    assert (call.include_usage, call.usage_so_far) == (included, included)


def test_content_parts_system_roles_and_names() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": "c", "name": "Ann"}]
    expected = ({"role": "system", "content": "a\nb"}, {"role": "user", "content": "c", "name": "Ann"})
    assert chat(messages=messages).prompts == (ChatPrompt(expected),)


def test_small_forms() -> None:
    assert chat(stop="x").stops == ("x",)
    assert chat(top_k=-1).sampling.top_k == 0
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert chat(seed=-1).sampling.seed == 2**63 - 1
    assert plain(prompt=[1, 2, 255]).prompts == (TokenPrompt((1, 2, 255)),)
    assert plain(prompt=["a", "b"]).prompts == (TextPrompt("a"), TextPrompt("b"))
    assert plain(prompt=[[1], [2, 3]]).prompts == (TokenPrompt((1,)), TokenPrompt((2, 3)))
    assert plain(logprobs=0).sampling == SamplingParams(seed=77, logprobs=0)
    assert plain(echo=True).sampling.prompt_logprobs is None
    assert plain(echo=True, logprobs=0).sampling.prompt_logprobs == 0
    assert plain(seed=5).is_seeded
