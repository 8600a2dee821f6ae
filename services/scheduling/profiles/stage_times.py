"""How long the two stages of a split request take: its part at P, the hand-off, its rest at D. Pure; all in seconds.

A stage (`PrefillStage`, `DecodeStage`) is an instance by its costs; put `under` a load it is the instance as it is just
now (`BusyPrefill`, `BusyDecode`), with all that does not depend on the request computed once.
"""

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
    least_s: float = 0.0
    """What any step takes (ours): the weights are read once, however few tokens there are. A line through longer
    prompts would make short ones too cheap."""

    def seconds(self, tokens: int) -> float:
        """T_pre of Cronus' Eq. 2, but no step below `least_s`."""
        if tokens <= 0:
            return 0.0
        if self.chunk is None or tokens <= self.chunk:
            return max(self.cost.base + self.cost.per_token * tokens, self.least_s)
        chunks, rest = divmod(tokens, self.chunk)
        return chunks * self.seconds(self.chunk) + self.seconds(rest)

    def tokens_within(self, seconds: float) -> int:
        """Most tokens that take no longer; 0 where tokens cost nothing beyond their step."""
        chunks = 0
        if self.chunk is not None and (chunk_s := self.seconds(self.chunk)) > 0:
            chunks = max(0, int(seconds / chunk_s))
            seconds -= chunks * chunk_s
        base, per_token = self.cost.base, self.cost.per_token
        rest = int((seconds - base) / per_token) if per_token > 0 and seconds >= max(base, self.least_s) else 0
        return rest if self.chunk is None else chunks * self.chunk + min(rest, self.chunk)

    def under(self, load: PrefillLoad) -> "BusyPrefill":
        """P as it is now. What is being computed counts whole: when it began is not known here."""
        return BusyPrefill(self, sum(map(self.seconds, load.queued)), sum(load.queued))


class BusyPrefill(msgspec.Struct, frozen=True):
    """A P, and how long it is until it can begin something new."""

    stage: PrefillStage
    backlog_s: float
    backlog_tokens: int = 0
    """Whose KV has not been handed over either."""


class TransferStage(msgspec.Struct, frozen=True):
    """The link of a pair: bytes per token on the wire, payload bytes per second, seconds for a small message."""

    bytes_per_token: int = 0
    bytes_per_s: float | None = None
    """None: not measured yet; then the hand-off is taken to cost its latency alone."""
    latency_s: float = 0.0

    def seconds(self, tokens: int) -> float:
        """0 for no tokens."""
        if tokens <= 0:
            return 0.0
        return self.latency_s + (tokens * self.bytes_per_token / self.bytes_per_s if self.bytes_per_s else 0.0)


class DecodeStage(msgspec.Struct, frozen=True):
    """The costs of D, with its `budget` of tokens per step and the most sequences that decode at once."""

    mixed: MixedStepCost
    decode: DecodeStepCost
    budget: int
    slots: int

    def under(self, load: DecodeLoad) -> "BusyDecode":
        """D as it is now; the chunks of the prompts it has to compute are taken to have half of them as context."""
        mixed, room = self.mixed, max(1, self.budget - load.decodes)
        step_s = mixed.base + mixed.per_token * load.decodes + mixed.per_decode_context * load.decode_context
        backlog_s = 0.0
        if load.prefill_tokens > 0:
            steps = load.prefill_tokens / room
            context = load.prefill_tokens / max(1, load.prompts) / 2
            backlog_s = steps * step_s + mixed.per_token * load.prefill_tokens
            backlog_s += steps * mixed.per_chunk_context * context
        return BusyDecode(self, load, room, step_s, mixed.per_token, mixed.per_chunk_context, backlog_s)


class BusyDecode(msgspec.Struct, frozen=True):
    """A D under a load."""

    stage: DecodeStage
    load: DecodeLoad
    room: int
    """Prompt tokens that fit in a step beside its decodes."""
    step_s: float
    """A step but for its prompt tokens and their context."""
    per_token: float
    per_chunk_context: float
    backlog_s: float
    """To compute the prompt tokens of the load."""

    def rest_seconds(self, start: int, stop: int) -> float:
        """T_chk: to compute tokens [start, stop) of a prompt in chunks beside the decodes.

        The sum of Cronus' Eq. 3 over N = (stop - start) / (C - n_d) steps, decodes frozen as they are.  N is not
        rounded up (ours): the rest of a budget goes to another prompt.  But a request needs at least one step.
        """
        tokens, room = stop - start, self.room
        if tokens <= room:
            return self.step_s + self.per_token * tokens + self.per_chunk_context * start
        steps = tokens / room
        context = start + (tokens - room) / 2
        return steps * self.step_s + self.per_token * tokens + steps * self.per_chunk_context * context

    def is_full(self) -> bool:
        """Whether its slots are taken, or will be by the prompts it has to compute."""
        return self.load.decodes + self.load.prompts >= self.stage.slots

    def share_seconds(self, start: int, stop: int, output: float) -> float:
        """The time of D that a request takes where many follow each other: T_chk with steps shared among prompts, and
        what decoding adds where D is full of decodes (ours, not the paper's).

        A request of `output` tokens occupies one of the slots for as many steps, so that each request takes
        output / slots steps of D.  Those beyond the steps of its chunks compute no chunk.
        """
        tokens = stop - start
        steps = tokens / self.room
        context = start + max(0, tokens - self.room) / 2
        chunks_s = steps * (self.step_s + self.per_chunk_context * context) + self.per_token * tokens
        extra = output / self.stage.slots - steps
        if output == 0 or extra <= 0 or not self.is_full():
            return chunks_s
        load, slots = self.load, self.stage.slots
        mean_context = load.decode_context / load.decodes if load.decodes else float(stop)
        return chunks_s + extra * self.stage.decode.seconds(slots, int(slots * mean_context))
