"""Outcomes as rows of a report, and as the table of docs/parity.md. Pure."""

from collections.abc import Sequence

from services.bench.parity.run import Outcome
from services.bench.report import Row, Where


def parity_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One for each answer that was compared."""
    return [
        {
            "kind": "parity",
            "where": Where.REAL.value,
            "repeats": 1,
            "question": outcome.question,
            "split": str(outcome.split),
            "streamed": outcome.streamed,
            "placement": outcome.placement,
            "same": outcome.difference is None,
            "logprob_error": outcome.logprob_error,
            "difference": outcome.difference,
        }
        for outcome in outcomes
    ]


def parity_summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """How many were the same, of how many; and the worst logprob."""
    return {
        "answers": float(len(outcomes)),
        "same_answers": float(sum(outcome.difference is None for outcome in outcomes)),
        "largest_logprob_error": max((outcome.logprob_error for outcome in outcomes), default=0.0),
    }


def parity_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line for each question, a column for each way to ask."""
    ways = sorted({(str(outcome.split), outcome.streamed) for outcome in outcomes}, key=_order(outcomes).__getitem__)
    cells = {(o.question, str(o.split), o.streamed): "=" if o.difference is None else "**≠**" for o in outcomes}
    heads = [f"s = {split}{', streamed' if streamed else ''}" for split, streamed in ways]
    lines = ["| asked | " + " | ".join(heads) + " |", "|---" * (1 + len(ways)) + "|"]
    for question in dict.fromkeys(outcome.question for outcome in outcomes):
        shown = [cells.get((question, *way), "–") for way in ways]
        lines.append(f"| {question} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _order(outcomes: Sequence[Outcome]) -> dict[tuple[str, bool], int]:
    ways = dict.fromkeys((str(outcome.split), outcome.streamed) for outcome in outcomes)
    return {way: place for place, way in enumerate(ways)}
