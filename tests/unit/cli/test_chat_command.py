"""`pdmesh chat` where nobody answers, and where one answers who is no gateway."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console
from typer.testing import CliRunner

from services.cli.chat import ChatFailed, ChatSettings, Conversation, run_chat
from services.cli.gateway_client import NoMesh
from services.cli.main import app
from tests.unit.cli.http_case import serving

SAID = b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\ndata: {"choices": [{"delta": {"content": "hi"}}]}\n\n'
BROKEN = b'data: {"error": {"message": "it broke", "type": "x"}}\n\n'
STRANGE = {
    "/html": b"<html>",
    "/list": b"data: [1]\n\n",
    "/choice": SAID + b'data: {"choices": [{}]}\n\n',
    "/bytes": b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n',
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    known = {"": SAID + b"data: [DONE]\n\n", "/short": SAID, "/broken": SAID + BROKEN, **STRANGE}
    with serving(lambda path: (200, known[path.removesuffix("/v1/chat/completions")])) as url:
        yield url


def said(url: str) -> str:
    return "".join(Conversation(ChatSettings(url, "m")).say("hello"))


def test_the_pieces_of_an_answer_are_its_text(url: str) -> None:
    assert said(url) == "hi"


@pytest.mark.parametrize("wrong", ["foo", "http://[", "http://127.0.0.1:1", "http://127.0.0.1:x", "http://a b"])
def test_an_address_that_is_none_is_told(wrong: str) -> None:
    with pytest.raises(NoMesh, match="--url"):
        said(wrong)
    done = CliRunner().invoke(app, ["chat", "hi", "--model", "m", "--url", wrong])
    assert isinstance(done.exception, NoMesh)


@pytest.mark.parametrize("path", STRANGE)
def test_an_answer_that_is_no_gateways_is_told_and_the_conversation_goes_on(url: str, path: str) -> None:
    with pytest.raises(ChatFailed, match="none of a pdmesh gateway"):
        said(f"{url}{path}")
    out, lines = io.StringIO(), iter(["hello", "/quit"])
    run_chat(ChatSettings(f"{url}{path}", "m"), None, lambda: next(lines), Console(file=out, width=200))
    assert "error: the answer is none of a pdmesh gateway" in out.getvalue()


def test_an_answer_that_breaks_off_says_why(url: str) -> None:
    with pytest.raises(ChatFailed, match="the answer broke off"):
        said(f"{url}/short")
    with pytest.raises(ChatFailed, match="it broke"):
        said(f"{url}/broken")
