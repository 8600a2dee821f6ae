"""Where answers end, how events are counted, and what is recorded of a stream."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bench.gateway.fixed_answers import FixedAnswer, split_events, text_events
from services.bench.gateway.http_answers import AnswerBytes, without_chunks
from services.bench.gateway.questions import STREAM, WHOLE, WHOLE_IN_STEPS, http_request
from services.bench.transfer.errors import BenchError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = [b"data: %d\n\n" % number for number in range(5)]


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(data) for place in at}), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges) if start < stop]


@given(framing=st.lists(st.integers(min_value=0, max_value=10**6)), packets=st.lists(st.integers(0, 10**6)))
def test_a_stream_is_whole_with_its_last_byte_however_it_is_cut(framing: list[int], packets: list[int]) -> None:
    body = b"".join(EVENTS)
    data = HEAD + chunked(cut(body, framing))
    answer = AnswerBytes()
    *firsts, last = cut(data, packets)
    assert not any(answer.add(piece) for piece in firsts)
    assert answer.add(last)
    assert answer.is_good
    assert answer.body() == body
    assert answer.events(expected=5) == 5
    assert answer.events(expected=9) == 5


@given(packets=st.lists(st.integers(0, 10**6)))
def test_a_body_of_a_known_length(packets: list[int]) -> None:
    data = b'HTTP/1.1 429 Too Many\r\ncontent-length: 8\r\n\r\n{"a": 1}'
    answer = AnswerBytes()
    *firsts, last = cut(data, packets)
    assert not any(answer.add(piece) for piece in firsts)
    assert answer.add(last)
    assert not answer.is_good
    assert json.loads(answer.body()) == {"a": 1}


def test_an_answer_that_cannot_end_is_refused() -> None:
    with pytest.raises(ValueError, match="without a length"):
        AnswerBytes().add(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")


def test_an_event_whose_name_is_split_by_the_framing_counts() -> None:
    answer = AnswerBytes()
    assert answer.add(HEAD + chunked([b"data: 1\n\nda", b"ta: 2\n\n"]))
    assert answer.events(expected=2) == 2


def test_extensions_of_chunks_are_no_content() -> None:
    assert without_chunks(b"3;name=value\r\nabc\r\n0\r\n\r\n") == b"abc"


def test_events_that_carry_text() -> None:
    body = b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":""}]}\n\ndata: [DONE]\n\n'
    events = split_events(body)
    assert b"".join(events) == body
    assert (len(events), text_events(events)) == (3, 1)
    with pytest.raises(BenchError, match=r"without \[DONE\]"):
        split_events(body.removesuffix(b"data: [DONE]\n\n"))


def test_each_question_is_known_by_its_body() -> None:
    questions = (WHOLE, STREAM, WHOLE_IN_STEPS)
    for asked in questions:
        fitting = [question for question in questions if FixedAnswer(question.markers()).fits(asked.body())]
        assert fitting == [asked]


def test_the_bytes_of_a_request() -> None:
    head, body = http_request("http://127.0.0.1:81", WHOLE.body()).split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:81\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["max_tokens"] == 1
