"""Grammars of answers: text in llguidance's dialect of Lark, bounded, and compiled for one tokenizer.

Who checks a grammar (the gateway) and who follows it (D) use the same bounds, so that what is accepted can be followed.
"""

import re
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from common.errors import GrammarRefused

MOST_GRAMMAR_CHARACTERS: Final = 1 << 18
"""Of a whole grammar: the schemas of all tools together."""

_PLACE: Final = re.compile(r"^at \d+\(\d+\): ")
_LISTING: Final = re.compile(r"\n\s*\d+ \| ")
"""Where the library begins to show the grammar."""

_REASON_CHARACTERS: Final = 300
"""The library quotes what it refuses, and that may be all of it."""


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of an answer. Milliseconds, more for large schemas; raises GrammarRefused.

    Other Python threads run meanwhile.
    """
    if len(grammar) > MOST_GRAMMAR_CHARACTERS:
        raise GrammarRefused(
            f"the grammar has {len(grammar)} characters; the limit is {MOST_GRAMMAR_CHARACTERS}: use smaller schemas"
        )
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())
    check(matcher)
    return matcher


def check(matcher: LLMatcher) -> None:
    """Raise GrammarRefused for a matcher that has given up; it stays so."""
    if matcher.is_error():
        raise GrammarRefused(shortened(matcher.get_error()))


def shortened(reason: str) -> str:
    """The library's words as one line of bearable length, without the place in a text that no client has written."""
    words = _LISTING.split(reason.replace("<non-verbose/>", ""))[0]
    line = " ".join(_PLACE.sub("", words).split())
    if line.startswith("NoExtension"):
        return "nothing satisfies it"
    return line if len(line) <= _REASON_CHARACTERS else f"{line[:_REASON_CHARACTERS]}…"


def _limits() -> LLParserLimits:
    """Well above what honest schemas need (docs/decisions/0018), and a few ms of one core for a hostile one."""
    return LLParserLimits(
        max_items_in_row=1_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )
