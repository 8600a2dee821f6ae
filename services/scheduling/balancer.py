"""The split balancer: how much of a prompt P computes. Pure.

Cronus (arXiv 2509.17357, section 4.3) makes the time of P's part equal to that of D's under D's present load; its exact
terms are not public, ours are those of `stage_times`.  Two aims are offered: the paper's, for throughput, and the
earliest first token, which is ours.
"""

from collections.abc import Callable
from enum import StrEnum

import msgspec

from services.scheduling.stage_times import DecodeLoad, DecodeStage, PrefillLoad, PrefillStage, TransferStage


class Balance(StrEnum):
    """What the split is chosen for."""

    STAGES = "stages"
    """Equal times of the two stages of this request, T_pre(s) = T_chk(L - s): neither device waits for the other where
    requests follow each other."""
    FINISH = "finish"
    """The earliest first token: P computes what it can while D is busy with the prompts before this one."""


class SplitTask(msgspec.Struct, frozen=True):
    """The request, as far as its split depends on it."""

    prompt_tokens: int
    expected_output: float = 0.0
    """0: the decode length plays no part in the balance."""
    held_tokens: int = 0
    """Tokens of the prompt whose KV D has already."""
    most_tokens: int | None = None
    """Most tokens that P holds; None: any prompt."""

    def bounds(self) -> tuple[int, int]:
        """Least and most tokens of the split: D always computes the last token of the prompt."""
        last = self.prompt_tokens - 1
        least = min(self.held_tokens, last)
        return least, last if self.most_tokens is None else max(least, min(last, self.most_tokens))


class Pair(msgspec.Struct, frozen=True):
    """A P and a D with the link between them."""

    prefill: PrefillStage
    transfer: TransferStage
    decode: DecodeStage
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


def choose_split(
    task: SplitTask,
    prefill_load: PrefillLoad,
    decode_load: DecodeLoad,
    pair: Pair,
    balance: Balance = Balance.STAGES,
) -> Split:
    """The split in [held, L-1], whole blocks but for the bounds. Bisection: about log2(L) evaluations of both times."""
    times = _Times(task, prefill_load, decode_load, pair)
    least, most = task.bounds()
    if balance is Balance.STAGES:
        equal = _last(least, most, lambda split: times.at_prefill(split) <= times.at_decode(split))
        return times.split(times.in_blocks(equal))
    meeting = _last(least, most, lambda split: times.handed_over(split) <= times.decode_backlog)
    candidates = (least, times.in_blocks(meeting), most)
    return min(map(times.split, candidates), key=lambda split: (split.first_token_s, split.tokens))


def without_prefill(task: SplitTask, decode_load: DecodeLoad, decode: DecodeStage) -> Split:
    """What is predicted where D computes all that it does not hold."""
    least, _ = task.bounds()
    rest_s = decode.rest_seconds(least, task.prompt_tokens, decode_load)
    return Split(least, 0.0, 0.0, rest_s, decode.backlog_seconds(decode_load) + rest_s)


class _Times:
    """The times of one request on one pair, as functions of s."""

    def __init__(self, task: SplitTask, prefill_load: PrefillLoad, decode_load: DecodeLoad, pair: Pair) -> None:
        self._task = task
        self._load = decode_load
        self._pair = pair
        self.prefill_backlog = pair.prefill.backlog_seconds(prefill_load)
        self.decode_backlog = pair.decode.backlog_seconds(decode_load)

    def at_prefill(self, split: int) -> float:
        return self._pair.prefill.seconds(split - self._task.held_tokens)

    def at_decode(self, split: int) -> float:
        task, decode = self._task, self._pair.decode
        rest = decode.rest_seconds(split, task.prompt_tokens, self._load)
        if task.expected_output == 0:
            return rest
        return rest + decode.decode_only_seconds(split, task.prompt_tokens, task.expected_output, self._load)

    def handed_over(self, split: int) -> float:
        """When D has the KV of [0, split)."""
        taken = split - self._task.held_tokens
        if taken <= 0:
            return 0.0
        return self.prefill_backlog + self.at_prefill(split) + self._pair.transfer.seconds(taken)

    def split(self, tokens: int) -> Split:
        decode_s = self._pair.decode.rest_seconds(tokens, self._task.prompt_tokens, self._load)
        return Split(
            tokens=tokens,
            prefill_s=self.at_prefill(tokens),
            transfer_s=self._pair.transfer.seconds(tokens - self._task.held_tokens),
            decode_s=decode_s,
            first_token_s=max(self.handed_over(tokens), self.decode_backlog) + decode_s,
        )

    def in_blocks(self, split: int) -> int:
        """To the nearest whole block within the bounds."""
        size = self._pair.block_size
        least, most = self._task.bounds()
        return max(least, min(most, (split + size // 2) // size * size))


def _last(least: int, most: int, holds: Callable[[int], bool]) -> int:
    """The last s in [least, most] with `holds`, which turns false once; `least` where it never holds."""
    while least < most:
        middle = (least + most + 1) // 2
        if holds(middle):
            least = middle
        else:
            most = middle - 1
    return least
