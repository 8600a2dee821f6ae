"""The workloads A to D: prompts of random tokens, all there from the start."""

import random
from collections.abc import Iterable

import msgspec

from services.simulator.workload.requests import Workload

SEED = 6


class Load(msgspec.Struct, frozen=True):
    """Requests of one workload."""

    name: str
    about: str
    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]
    """Tokens to generate for each."""

    @property
    def prompt_tokens(self) -> int:
        """Of all requests."""
        return sum(map(len, self.prompts))

    @property
    def decode_tokens(self) -> int:
        """What is generated after the first token of each request."""
        return sum(self.outputs) - len(self.outputs)

    def prefill_only(self) -> "Load":
        """The same prompts, one token each."""
        return msgspec.structs.replace(self, outputs=(1,) * len(self.prompts))


def loads(conversation: Workload, vocab_size: int, *, quick: bool) -> tuple[Load, ...]:
    """A to D. `conversation`: the requests of B, scaled already; `quick` takes a fraction of all of them."""
    sizes = [(request.prompt_tokens, request.output_tokens) for request in conversation.requests]
    plans = (
        ("A", "16 requests of 256 + 64 tokens", [(256, 64)] * (4 if quick else 16)),
        ("B", f"{len(sizes)} requests, lengths of {conversation.name}", sizes[:8] if quick else sizes),
        ("C", "one request of 256 + 64 tokens", [(256, 64)]),
        ("D", "8 requests of 2,016 + 32 tokens", [(2016, 32)] * (1 if quick else 8)),
    )
    return tuple(_load(name, about, lengths, vocab_size) for name, about, lengths in plans)


def _load(name: str, about: str, lengths: Iterable[tuple[int, int]], vocab_size: int) -> Load:
    drawn = random.Random(f"{SEED}{name}")
    lengths = list(lengths)
    return Load(
        name=name,
        about=about,
        prompts=tuple(tuple(drawn.randrange(vocab_size) for _ in range(prompt)) for prompt, _ in lengths),
        outputs=tuple(output for _, output in lengths),
    )
