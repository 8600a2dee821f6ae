"""How long the two stages of a split request take: its part at P, the hand-off, its rest at D. Pure; all in seconds."""

import msgspec

from common.costs.models import DecodeStepCost, MixedStepCost, PrefillCost


class PrefillLoad(msgspec.Struct, frozen=True):
    """What a prefill instance still has to compute before something new: one number of tokens per prompt."""

    queued: tuple[int, ...] = ()


class DecodeLoad(msgspec.Struct, frozen=True):
    """What a decode instance does, as far as it delays something new."""

    decodes: int = 0
    """Sequences that decode."""
    decode_context: int = 0
    """Their contexts, summed."""
    prefill_tokens: int = 0
    """Prompt tokens that it has still to compute, those of requests whose first part is at a P included."""
    prompts: int = 0
    """Requests these tokens belong to."""


class PrefillStage(msgspec.Struct, frozen=True):
    """The costs of P. `chunk` None: a prompt is one step, as in the Cronus paper."""

    cost: PrefillCost
    chunk: int | None = None

    def seconds(self, tokens: int) -> float:
        """T_pre of Cronus' Eq. 2; in chunks, one base for each."""
        if self.chunk is None or tokens <= self.chunk:
            return self.cost.seconds(tokens)
        steps = -(-tokens // self.chunk)
        return steps * self.cost.base + self.cost.per_token * tokens

    def backlog_seconds(self, load: PrefillLoad) -> float:
        """Until P can begin something new. What is being computed counts whole: the start is not known here."""
        return sum(map(self.seconds, load.queued))


class TransferStage(msgspec.Struct, frozen=True):
    """The link of a pair: bytes per token on the wire, payload bytes per second, seconds for a small message."""

    bytes_per_token: int = 0
    bytes_per_s: float | None = None
    """None: not measured yet; then the hand-off is taken to cost its latency alone."""
    latency_s: float = 0.0

    def seconds(self, tokens: int) -> float:
        """0 for no tokens."""
        if tokens == 0:
            return 0.0
        return self.latency_s + (tokens * self.bytes_per_token / self.bytes_per_s if self.bytes_per_s else 0.0)


class DecodeStage(msgspec.Struct, frozen=True):
    """The costs of D, with its `budget` of tokens per step and the most sequences that decode at once."""

    mixed: MixedStepCost
    decode: DecodeStepCost
    budget: int
    slots: int

    def rest_seconds(self, start: int, stop: int, load: DecodeLoad) -> float:
        """T_chk: to compute tokens [start, stop) of a prompt in chunks beside the decodes of `load`.

        The sum of Cronus' Eq. 3 over N = (stop - start) / (C - n_d) steps, decodes frozen as they are.  N is not
        rounded up (ours): the rest of a budget goes to another prompt.  But a request needs at least one step.
        """
        tokens = stop - start
        room = self._room(load)
        steps = max(1.0, tokens / room)
        context = start + max(0, tokens - room) / 2
        return self._seconds(steps, tokens, load) + steps * self.mixed.per_chunk_context * context

    def backlog_seconds(self, load: DecodeLoad) -> float:
        """To compute the prompt tokens that `load` holds; the contexts of their chunks are taken to be half of them."""
        if load.prefill_tokens <= 0:
            return 0.0
        steps = load.prefill_tokens / self._room(load)
        context = load.prefill_tokens / max(1, load.prompts) / 2
        return self._seconds(steps, load.prefill_tokens, load) + steps * self.mixed.per_chunk_context * context

    def decode_only_seconds(self, start: int, stop: int, output: float, load: DecodeLoad) -> float:
        """What the decoding of a request adds to its share of D when D is full of decodes (ours, not the paper's).

        A request of `output` tokens occupies one of the slots for as many steps, so that each request takes
        output / slots steps of D.  Those beyond the steps of its chunks compute no chunk.
        """
        if load.decodes + load.prompts < self.slots:
            return 0.0
        extra = output / self.slots - (stop - start) / self._room(load)
        if extra <= 0:
            return 0.0
        mean_context = load.decode_context / load.decodes if load.decodes else float(stop)
        return extra * self.decode.seconds(self.slots, int(self.slots * mean_context))

    def _room(self, load: DecodeLoad) -> int:
        return max(1, self.budget - load.decodes)

    def _seconds(self, steps: float, tokens: int, load: DecodeLoad) -> float:
        mixed = self.mixed
        per_step = mixed.base + mixed.per_token * load.decodes + mixed.per_decode_context * load.decode_context
        return steps * per_step + mixed.per_token * tokens
