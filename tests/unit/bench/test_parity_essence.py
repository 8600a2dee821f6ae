"""What two answers have in common: whole and streamed, text, calls, logprobs."""

import pytest

from services.bench.parity.essence import difference, essence_of, essence_of_events, logprob_error
from services.bench.parity.questions import QUESTIONS
from services.bench.parity.rows import parity_summary, parity_table
from services.bench.parity.run import Outcome

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}


def chat(text="ab", logprobs=(-0.5, -1.0), usage=USAGE, finish="stop", calls=None):
    content = [{"token": piece, "logprob": value} for piece, value in zip("ab", logprobs, strict=True)]
    message = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": {"content": content}}],
        "usage": usage,
    }


def chunks(*deltas, finish="stop", usage=USAGE, index=0):
    events = [
        {"choices": [{"index": index, "delta": delta, "logprobs": {"content": entries}, "finish_reason": None}]}
        for delta, entries in deltas
    ]
    events.append({"choices": [{"index": index, "delta": {}, "logprobs": None, "finish_reason": finish}]})
    return [*events, {"choices": [], "usage": usage}]


def test_a_stream_is_the_same_as_a_whole_answer():
    streamed = chunks(
        ({"role": "assistant", "content": ""}, []),
        ({"content": "a"}, [{"token": "a", "logprob": -0.5}]),
        ({"content": "b"}, [{"token": "b", "logprob": -1.0}]),
    )
    assert essence_of_events(streamed) == essence_of(chat())


def test_pieces_of_a_call_are_put_together():
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    whole = essence_of(chat(text=None, calls=[{"id": "call_1", "type": "function", "function": function}]))
    opened = {"tool_calls": [{"index": 0, "id": "call_2", "function": {"name": "weather", "arguments": ""}}]}
    pieces = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ('{"city": ', '"Oslo"}')]
    entries = [{"token": "a", "logprob": -0.5}], [{"token": "b", "logprob": -1.0}], []
    streamed = essence_of_events(chunks(*zip([opened, *pieces], entries, strict=True)))
    assert whole.choices[0].calls == (("weather", '{"city": "Oslo"}'),)
    assert difference(streamed, whole) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"text": "ac"}, "choice 0: text 'ac' and not 'ab'"),
        ({"finish": "length"}, "choice 0: finish_reason 'length' and not 'stop'"),
        ({"usage": USAGE | {"completion_tokens": 3}}, "completion_tokens: 3 and not 2"),
        ({"logprobs": (-0.5, -1.1)}, "a logprob differs by 1.0e-01"),
        ({"logprobs": (None, -1.0)}, "choice 0: logprobs are null elsewhere"),
    ],
)
def test_a_difference_is_named(other, words):
    assert difference(essence_of(chat(**other)), essence_of(chat())) == words


def test_cached_tokens_and_small_errors_are_no_difference():
    other = chat(logprobs=(-0.5004, -1.0), usage=USAGE | {"prompt_tokens_details": {"cached_tokens": 0}})
    assert difference(essence_of(other), essence_of(chat())) is None
    assert logprob_error(essence_of(other), essence_of(chat())) == pytest.approx(4e-4)


def test_a_stream_without_usage_is_refused():
    with pytest.raises(ValueError, match="usage"):
        essence_of_events(chunks()[:-1])


def test_a_plain_completion_with_an_echo():
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [], "text_offset": [0, 1]}
    body = {"choices": [{"index": 0, "text": "ab", "finish_reason": "stop", "logprobs": logprobs}], "usage": USAGE}
    (choice,) = essence_of(body).choices
    assert choice.text == "ab"
    assert [one.logprob for one in choice.logprobs] == [None, -1.0]


def test_the_table_has_a_line_for_each_question():
    outcomes = [
        Outcome("a", 0, True, "", 0.0, None),
        Outcome("a", "full", False, "", 2e-4, None),
        Outcome("b", "full", False, "", 0.0, "text 'x' and not 'y'"),
    ]
    assert parity_table(outcomes).splitlines() == [
        "| asked | s = 0, streamed | s = full |",
        "|---|---|---|",
        "| a | = | = |",
        "| b | – | **≠** |",
    ]
    assert parity_summary(outcomes) == {"answers": 3, "same_answers": 2, "largest_logprob_error": 2e-4}


def test_questions_have_names_of_their_own():
    names = [question.name for question in QUESTIONS]
    assert len(set(names)) == len(names)
