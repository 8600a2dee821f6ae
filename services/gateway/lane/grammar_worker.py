"""The process that compiles clients' grammars before anybody else does (see grammar_check).

It may hang, or die of what it is given: it is killed and made anew. Says a line when it listens, then reads 4 bytes of
length and a grammar from its input, and answers with a line of JSON: null, or why the grammar is refused. Ends with its
input.
"""

import os
import random
import resource
import sys
import threading
from typing import BinaryIO, Final

import msgspec
from llguidance import LLMatcher, LLTokenizer

from common.errors import GrammarRefused
from common.grammar import check, compiled

_TRIED_TOKENS: Final = 64
"""Of a grammar that compiles, an answer by chance is begun: some compile in no time and then take seconds a token."""

_STACK_BYTES: Final = 2 << 20
"""A quarter of what D's thread has: what nests too deep for that dies here."""

_MEMORY_BYTES: Final = 2 << 30


def refusal(grammar: str, tokenizer: LLTokenizer) -> str | None:
    """Why no answer can be kept within `grammar`; None: one can."""
    try:
        _try(compiled(grammar, tokenizer))
    except GrammarRefused as error:
        return str(error)
    return None


def _try(matcher: LLMatcher) -> None:
    chance = random.Random(0)
    for _ in range(_TRIED_TOKENS):
        allowed = matcher.compute_logit_bias()
        check(matcher)
        matcher.consume_token(chance.choice([token for token, may in enumerate(allowed) if may]))
        check(matcher)
        if matcher.is_stopped():
            return


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends. Single bytes for tokens find every fault of a grammar in the least time."""
    tokenizer = LLTokenizer("byte")
    answers.write(b"null\n")
    answers.flush()
    while len(head := questions.read(4)) == 4:
        grammar = questions.read(int.from_bytes(head, "big")).decode()
        answers.write(msgspec.json.encode(refusal(grammar, tokenizer)) + b"\n")
        answers.flush()


def main() -> None:
    """Serve standard input and output."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_BYTES)
    # From here on it dies of what clients send, and the last words of that would fill the gateway's log.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    worker = threading.Thread(target=serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    worker.start()
    worker.join()


if __name__ == "__main__":
    main()
