"""docs/api.md says of every parameter what the gateway does with it."""

from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as plain_params
from openai.types.chat import completion_create_params as chat_params

from services.gateway.openai.body import IGNORED
from services.gateway.openai.requests import MOST_ANSWERS, MOST_PROMPTS
from services.gateway.openai.types import ChatFields, CompletionFields

PAGE = Path(__file__).parents[4] / "docs" / "api.md"


def rows() -> dict[str, tuple[str, str]]:
    """(chat, completions) of each parameter."""
    section = PAGE.read_text().partition("## Parameters")[2].partition("\n## ")[0]
    cells = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    names = [name.strip(" `") for name, *_ in cells]
    assert len(names) == len(set(names)), "a parameter has one row"
    return {name: (chat.strip(), plain.strip()) for name, (_, chat, plain, _) in zip(names, cells, strict=True)}


@pytest.mark.parametrize(
    ("column", "fields", "known"),
    [
        (0, ChatFields, chat_params.CompletionCreateParamsBase),
        (1, CompletionFields, plain_params.CompletionCreateParamsBase),
    ],
    ids=["chat", "completions"],
)
def test_every_row_is_true_and_every_parameter_has_one(column: int, fields: Any, known: Any) -> None:
    said = {name: cells[column] for name, cells in rows().items()}
    openai = {*known.__annotations__, "stream"}
    for name, word in said.items():
        expected = "supported" if name in fields.__struct_fields__ else "no effect" if name in IGNORED else None
        if expected is None:
            expected = "refused" if name in openai else "–"
        assert word == expected, name
    assert said.keys() >= openai | set(fields.__struct_fields__) | IGNORED


def test_the_bounds_that_the_page_names_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text().split())
    assert f"at most {MOST_PROMPTS}, and at most {MOST_ANSWERS} answers" in text
