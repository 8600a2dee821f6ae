"""The split balancer: how much of a prompt P computes. Pure.

Cronus (arXiv 2509.17357, section 4.3) makes the time of P's part equal to that of D's under D's present load; its exact
terms are not public, ours are those of `stage_times`.  Two aims are offered: the paper's, for throughput, and the
earliest first token, which is ours.
"""

from bisect import bisect_left
from collections.abc import Callable
from enum import StrEnum
from itertools import product

import msgspec

from services.scheduling.profiles.stage_times import BusyDecode, BusyPrefill, TransferStage


class Balance(StrEnum):
    """What the split is chosen for."""

    STAGES = "stages"
    """Equal times of the two stages of this request, T_pre(s) = T_chk(L - s): neither device waits for the other where
    requests follow each other. Where no part of it is small enough for P, as FINISH."""
    FINISH = "finish"
    """The earliest first token: P computes what it can while D is busy with the prompts before this one."""


class SplitTask(msgspec.Struct, frozen=True):
    """The request, as far as its split depends on it."""

    prompt_tokens: int
    expected_output: float = 0.0
    """Over all choices. 0: the decode length plays no part in the balance."""
    held_tokens: int = 0
    """Tokens of the prompt whose KV D has already."""
    prefill_held_tokens: int = 0
    """Those whose KV P has: the rest of its part it computes, whether or not D has some of it."""
    most_tokens: int | None = None
    """Most tokens that P holds; None: any prompt."""

    def bounds(self) -> tuple[int, int]:
        """Least and most tokens of the split: D always computes the last token of the prompt."""
        last = self.prompt_tokens - 1
        least = min(self.held_tokens, last)
        return least, last if self.most_tokens is None else max(least, min(last, self.most_tokens))


class Pair(msgspec.Struct, frozen=True):
    """A P and a D as they are now, with the link between them."""

    prefill: BusyPrefill
    transfer: TransferStage
    decode: BusyDecode
    block_size: int
    """Splits are whole blocks of D."""


class Split(msgspec.Struct, frozen=True):
    """The choice for one pair, with what is predicted for it, in seconds from now."""

    tokens: int
    """s; `held_tokens` where P computes nothing."""
    prefill_s: float
    """P's part alone."""
    transfer_s: float
    """After P has computed."""
    decode_s: float
    """D's part alone, up to the first token."""
    first_token_s: float
    """When the first token comes, with what both have to do before."""


def choose_split(task: SplitTask, pair: Pair, balance: Balance = Balance.STAGES) -> Split:
    """The split in [held, L-1], whole blocks but for the bounds. Bisection over the blocks, and two or a few splits
    next to where it ends.
    """
    times = _Times(task, pair)
    tokens = times.equal() if balance is Balance.STAGES else None
    if tokens is None:
        tokens = min(times.turns(), key=times.first_token)
    return times.split(tokens)


def without_prefill(task: SplitTask, decode: BusyDecode) -> Split:
    """What is predicted where D computes all that it does not hold."""
    least, _ = task.bounds()
    rest_s = decode.rest_seconds(least, task.prompt_tokens)
    return Split(least, 0.0, 0.0, rest_s, decode.backlog_s + rest_s)


class _Times:
    """The times of one request on one pair, as functions of s, and the splits that they single out."""

    def __init__(self, task: SplitTask, pair: Pair) -> None:
        self._prompt = task.prompt_tokens
        self._held = task.held_tokens
        self._prefill_held = task.prefill_held_tokens
        self._output = task.expected_output
        self._least, self._most = task.bounds()
        self._block_size = pair.block_size
        self._prefill, self._decode = pair.prefill.stage, pair.decode
        self._prefill_s, self._transfer_s = pair.prefill.stage.seconds, pair.transfer.seconds
        self._prefill_free_s = pair.prefill.backlog_s
        self._wire_free_s = pair.transfer.seconds(pair.prefill.backlog_tokens)
        self._decode_free_s = pair.decode.backlog_s

    def handed_over(self, split: int) -> float:
        """When D has the KV of [0, split): the wire is taken in turn, as P is."""
        taken = split - self._held
        if taken <= 0:
            return 0.0
        computed_s = self._prefill_free_s + self._computed_s(split)
        return max(computed_s, self._wire_free_s) + self._transfer_s(taken)

    def _computed_s(self, split: int) -> float:
        """P's part alone, where it has one."""
        return self._prefill_s(split - self._prefill_held)

    def first_token(self, split: int) -> float:
        """When D has both the KV and time for it, and has computed the rest."""
        return max(self.handed_over(split), self._decode_free_s) + self._decode.rest_seconds(split, self._prompt)

    def split(self, tokens: int) -> Split:
        taken = tokens - self._held
        decode_s = self._decode.rest_seconds(tokens, self._prompt)
        first_token_s = max(self.handed_over(tokens), self._decode_free_s) + decode_s
        prefill_s = self._computed_s(tokens) if taken > 0 else 0.0
        return Split(tokens, prefill_s, self._transfer_s(taken), decode_s, first_token_s)

    def equal(self) -> int | None:
        """Where the stages take as long as each other, to the nearest block; None where P takes longer for any part, so
        that only the work before a request can say what P is to do.

        The wire is part of P's stage, but carries the KV of one request while P computes for the next.
        """
        held, prompt, output = self._held, self._prompt, self._output
        computed, transfer, decode = self._computed_s, self._transfer_s, self._decode.share_seconds

        def is_late(split: int) -> bool:
            return max(computed(split), transfer(split - held)) > decode(split, prompt, output)

        below, above = self._around(is_late)
        equal = below if is_late((below + above + 1) // 2) else above
        return equal if equal > self._least else None

    def turns(self) -> list[int]:
        """Splits in rising order, one of which has the earliest first token of all whole blocks and the bounds.

        Between its turning points the first token's time is concave in s, so that it is least next to one of them:
        where P hands over just when D has time, where D's rest becomes a single step, where P has anything to send,
        where it has anything to compute, where that becomes longer than the least time of a step, where the wire is
        free before P is done, at the bounds.  Where P computes in chunks it is so from the end of one chunk to that of
        another (if these are whole blocks).
        """
        in_time = self._around(lambda split: self.handed_over(split) > self._decode_free_s)
        longer = self._prefill.tokens_within(self._prefill.least_s)
        hidden = self._prefill.tokens_within(self._wire_free_s - self._prefill_free_s)
        points = {self._least, *in_time, *self._in_blocks(self._prompt - self._decode.room), self._most}
        # Until it has to wait for P, D does not care how P's time grows.
        for turn in (self._held, *(self._prefill_held + tokens for tokens in (0, longer, hidden))):
            if turn > in_time[0]:
                points.update(self._in_blocks(turn))
        if (chunk := self._prefill.chunk) is not None:
            for point, turn in product(tuple(points), {0, longer}):
                before = point - (point - self._prefill_held - turn) % chunk
                points.update((*self._in_blocks(before), *self._in_blocks(before + chunk)))
        return sorted(points)

    def _around(self, is_late: Callable[[int], bool]) -> tuple[int, int]:
        """Of the lower bound and the whole blocks after it the last that is not late, and what follows it: a block that
        is late, or the upper bound. The lower bound never is late; splits after a late one are.
        """
        first = self._least - self._least % self._block_size + self._block_size
        blocks = range(first, self._most, self._block_size)
        # Often all are: where D has nothing to do there is no time for P.
        late = bisect_left(blocks, True, key=is_late) if blocks and not is_late(first) else 0
        return blocks[late - 1] if late > 0 else self._least, blocks[late] if late < len(blocks) else self._most

    def _in_blocks(self, split: int) -> tuple[int, int]:
        """The last whole block up to `split` and the first beyond, or the bounds where these are next. Beyond, because
        turning points are rounded down to tokens.
        """
        split = max(self._least, min(self._most, split))
        below = split - split % self._block_size
        return max(self._least, below), min(self._most, below + self._block_size)
