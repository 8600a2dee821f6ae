"""Grammars for the engine: compiled on a thread of their own, for the tokenizer of the served model."""

import asyncio
import logging
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from llguidance import LLMatcher

from common.errors import GrammarRefused, ModelError
from common.grammar import check, compiled
from services.decode.vocabulary import Vocabulary
from services.engine.guide import Grammar, Guide
from services.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

SLOWEST_MASK_S: Final = 0.25
"""Of the engine's own time, while every other request waits. Usual are 0.05 ms, and 10 ms at the worst."""

KEPT: Final = 64
"""Grammars that stay compiled, the last used."""


class Grammars:
    """Compiles the grammars of one model, whose tokenizer it loads with the first; owns a thread: close it."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        # What follows is the thread's.
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[str, _MatcherGrammar] = OrderedDict()

    async def compiled(self, text: str) -> Grammar:
        """The grammar of `text`; raises GrammarRefused. Cancelling drops the result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compiled, text)

    def close(self) -> None:
        """Compile no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compiled(self, text: str) -> "_MatcherGrammar":
        grammar = self._kept.pop(text, None)
        if grammar is None or grammar.is_spent:
            grammar = self._compile(text)
        self._kept[text] = grammar
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return grammar

    def _compile(self, text: str) -> "_MatcherGrammar":
        if self._vocabulary is None:
            self._vocabulary = self._load()
        return _MatcherGrammar(compiled(self._vocabulary.worded(text), self._vocabulary.tokenizer))

    def _load(self) -> Vocabulary:
        try:
            return Vocabulary.of(Tokenizer.load(self._folder), self._vocab_size)
        except (ModelError, ValueError) as error:
            _log.error("no answer can be kept within a grammar: %s", error)
            raise GrammarRefused(f"this model's tokenizer cannot be kept within a grammar: {error}") from error


class _MatcherGrammar(Grammar):
    def __init__(self, start: LLMatcher) -> None:
        self._start = start
        self.is_spent = False
        """An answer has outgrown the bounds: copies share a lexer, and what it has grown to would end others too."""

    def guide(self) -> Guide:
        return _MatcherGuide(self, self._start.deep_copy())


class _MatcherGuide(Guide):
    def __init__(self, grammar: _MatcherGrammar, matcher: LLMatcher) -> None:
        self._grammar = grammar
        self._matcher = matcher

    @property
    def is_over(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> bytes:
        before = time.thread_time()
        mask = self._matcher.compute_logit_bias()
        seconds = time.thread_time() - before
        if self._matcher.is_error() or seconds > SLOWEST_MASK_S:
            self._grammar.is_spent = True
        check(self._matcher)
        if seconds > SLOWEST_MASK_S:
            raise GrammarRefused(f"it took {seconds:.1f} s to find what may come next; use simpler patterns")
        return mask

    def may_end(self) -> bool:
        return self._matcher.is_accepting()

    def advance(self, token: int) -> None:
        self._matcher.consume_token(token)

    def fork(self) -> Guide:
        return _MatcherGuide(self._grammar, self._matcher.deep_copy())
