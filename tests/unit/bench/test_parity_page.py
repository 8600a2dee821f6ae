"""docs/parity.md shows every question, as it was answered last."""

import json
from pathlib import Path

from services.bench.parity.questions import QUESTIONS

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_has_every_question_and_no_difference() -> None:
    lines = [line for line in (DOCS / "parity.md").read_text().splitlines() if line.startswith("| ")]
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for cells in (line.strip("|").split("|") for line in lines)
    }
    del rows["asked"]
    assert list(rows) == [question.name for question in QUESTIONS]
    assert all(cells == ["="] * 7 for cells in rows.values())


def test_the_figures_are_of_all_questions() -> None:
    report = json.loads((DOCS / "benchmarks" / "parity.json").read_text())
    assert len(report["rows"]) == 7 * len(QUESTIONS)
