"""What one instance has been given and has not finished, in tokens: work to do and memory to hold it. Pure.

Counts only, so that every sum is exact whatever happens in which order; `ledgers.rates` says how many
seconds they are.
"""

from dataclasses import dataclass, field

import msgspec

from common.errors import PdmeshError
from common.ids import RequestId


class LedgerError(PdmeshError):
    """The sums of a ledger are not those of its entries: a fault of this process."""


class Share(msgspec.Struct, frozen=True):
    """What one request is to one instance."""

    prompt_tokens: int
    """Tokens of the prompt that are computed here."""
    kv_tokens: int
    """Tokens of the prompt whose KV comes to be here, computed here or elsewhere."""
    expected_output: int = 0
    """Tokens that one choice is expected to make here; 0 at P."""
    most_output: int = 0
    """Most that it can make."""
    choices: int = 1

    @property
    def most_tokens(self) -> int:
        """Most tokens it can come to here."""
        return self.kv_tokens + self.choices * self.most_output

    @property
    def expected_tokens(self) -> int:
        """Tokens it is expected to come to here, as predicted when it was placed."""
        return self.kv_tokens + self.choices * self.expected_output

    def still_to_come(self, emitted: int) -> int:
        """Tokens that a choice of `emitted` ones is expected to make yet.

        One that has outlived its prediction is expected to be half as long again, as often as it has to be: lengths
        have a heavy tail, where the longer an answer is the more is to come.  Never beyond `most_output`.
        """
        expected = self.expected_output
        while expected <= emitted and expected < self.most_output:
            expected = min(self.most_output, expected + max(1, expected // 2))
        return max(0, expected - emitted)


class Mix(msgspec.Struct, frozen=True):
    """What kind of requests there are: sums over some of them, as they were given."""

    sequences: int = 0
    """Choices count each."""
    prompt_tokens: int = 0
    """To compute, all of them, computed or not."""
    kv_tokens: int = 0
    """Of prompts, wherever they are computed."""
    output_tokens: int = 0
    """As predicted."""

    @classmethod
    def of(cls, share: Share) -> "Mix":
        """Of one request."""
        return cls(share.choices, share.prompt_tokens, share.kv_tokens, share.choices * share.expected_output)

    def plus(self, other: "Mix") -> "Mix":
        """Of both."""
        return Mix(
            self.sequences + other.sequences,
            self.prompt_tokens + other.prompt_tokens,
            self.kv_tokens + other.kv_tokens,
            self.output_tokens + other.output_tokens,
        )

    def minus(self, other: "Mix") -> "Mix":
        """Without those."""
        return Mix(
            self.sequences - other.sequences,
            self.prompt_tokens - other.prompt_tokens,
            self.kv_tokens - other.kv_tokens,
            self.output_tokens - other.output_tokens,
        )


class Work(msgspec.Struct, frozen=True):
    """What an instance has to do and holds, queued and running; all zero when it is idle."""

    prompt_tokens: int = 0
    """Of prompts, to compute."""
    output_tokens: int = 0
    """Expected to come yet. Each takes room for its KV when it comes."""
    output_squares: int = 0
    """The squares of these, summed over the sequences: how unlike they are."""
    kv_tokens: int = 0
    """Of prompts, and the tokens that have come of answers that go on."""
    mix: Mix = Mix()
    """The requests that all this is of."""
    ending: int = 0
    """Sequences whose next token is expected to be the last."""

    @classmethod
    def of(cls, share: Share) -> "Work":
        """All of one request, of which nothing is done."""
        output = share.still_to_come(0)
        return cls(
            prompt_tokens=share.prompt_tokens,
            output_tokens=share.choices * output,
            output_squares=share.choices * output * output,
            kv_tokens=share.kv_tokens,
            mix=Mix.of(share),
        )

    def plus(self, other: "Work") -> "Work":
        """Both."""
        return Work(
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.output_squares + other.output_squares,
            self.kv_tokens + other.kv_tokens,
            self.mix.plus(other.mix),
            self.ending + other.ending,
        )


@dataclass(slots=True)
class _Held:
    share: Share
    emitted: list[int | None]
    """By choice; None: it has ended."""

    def answers(self) -> "_Answers":
        """Of the choices that go on."""
        answers = _Answers()
        for emitted in self.emitted:
            if emitted is not None:
                answers.count(self.share.still_to_come(emitted), emitted, 1)
        return answers


@dataclass(slots=True)
class _Answers:
    """Sums over answers that go on."""

    tokens: int = 0
    """Still to come."""
    squares: int = 0
    emitted: int = 0
    ending: int = 0
    """Those that have begun and are expected to have one token still to come."""

    def count(self, still: int, emitted: int, sign: int) -> None:
        """One answer more (1) or fewer (-1)."""
        self.tokens += sign * still
        self.squares += sign * still * still
        self.emitted += sign * emitted
        self.ending += sign * (still <= 1 and emitted > 0)

    def subtract(self, other: "_Answers") -> None:
        """Without those."""
        self.tokens -= other.tokens
        self.squares -= other.squares
        self.emitted -= other.emitted
        self.ending -= other.ending


@dataclass(slots=True)
class WorkLedger:
    """The requests of which one instance may hold something. Every change is O(1)."""

    pending: dict[RequestId, int] = field(default_factory=dict)
    """Those whose prompt is not known to be computed, with the tokens to compute."""
    pending_tokens: int = 0
    decodes: int = 0
    """Sequences of the others."""
    most_tokens: int = 0
    """Most that all requests can come to."""
    _held: dict[RequestId, _Held] = field(default_factory=dict)
    _answers: _Answers = field(default_factory=_Answers)
    _mix: Mix = field(default_factory=Mix)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._held

    def requests(self) -> tuple[RequestId, ...]:
        """In the order in which they were given."""
        return tuple(self._held)

    def work(self, partial: int = 0) -> Work:
        """The sums, where `partial` tokens of the pending prompts are computed."""
        return _work(self.pending_tokens - partial, self._answers, self._mix)

    def give(self, request: RequestId, share: Share) -> None:
        """One more request, of which nothing is done."""
        held = self._held[request] = _Held(share, [0] * share.choices)
        self.pending[request] = share.prompt_tokens
        self.pending_tokens += share.prompt_tokens
        self.most_tokens += share.most_tokens
        still = share.still_to_come(0)
        for _ in held.emitted:
            self._answers.count(still, 0, 1)
        self._mix = self._mix.plus(Mix.of(share))

    def computed(self, request: RequestId) -> None:
        """Its prompt is computed. Only the first call counts, and only of a request that is held."""
        if (tokens := self.pending.pop(request, None)) is not None:
            self.pending_tokens -= tokens
            self.decodes += self._held[request].share.choices

    def reused(self, request: RequestId, tokens: int) -> None:
        """Of its prompt `tokens` are still to be computed here, whatever was expected when it was given."""
        if request in self.pending:
            self.pending_tokens += tokens - self.pending[request]
            self.pending[request] = tokens

    @property
    def ending(self) -> int:
        """Sequences whose next token is expected to be the last."""
        return self._answers.ending

    def emitted(self, request: RequestId, choice: int, tokens: int, *, ended: bool) -> None:
        """So many more tokens of a choice have come. One that has ended gives back what was expected of it yet, and
        what it held but for the prompt, which others may share.
        """
        held = self._held.get(request)
        if held is None or (before := held.emitted[choice]) is None:
            return
        self._answers.count(held.share.still_to_come(before), before, -1)
        held.emitted[choice] = None if ended else before + tokens
        if not ended:
            self._answers.count(held.share.still_to_come(before + tokens), before + tokens, 1)

    def release(self, request: RequestId) -> None:
        """Nothing is held of a request any more, whatever was still to do; KeyError where nothing was."""
        held = self._held.pop(request)
        if (tokens := self.pending.pop(request, None)) is not None:
            self.pending_tokens -= tokens
        else:
            self.decodes -= held.share.choices
        self.most_tokens -= held.share.most_tokens
        self._answers.subtract(held.answers())
        self._mix = self._mix.minus(Mix.of(held.share))

    def check(self) -> None:
        """Count everything anew; LedgerError where a sum is wrong. O(requests)."""
        mix, answers = Mix(), _Answers()
        for held in self._held.values():
            mix = mix.plus(Mix.of(held.share))
            for emitted in held.emitted:
                if emitted is not None:
                    answers.count(held.share.still_to_come(emitted), emitted, 1)
        counted = _work(sum(self.pending.values()), answers, mix)
        if counted != self.work():
            raise LedgerError(f"a ledger of {len(self)} requests says {self.work()}, and its entries sum to {counted}")


def _work(prompt_tokens: int, answers: _Answers, mix: Mix) -> Work:
    return Work(prompt_tokens, answers.tokens, answers.squares, mix.kv_tokens + answers.emitted, mix, answers.ending)
