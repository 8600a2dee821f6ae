"""What is run once in each round, and the prompts of each run."""

import zlib
from enum import StrEnum
from typing import Final

import msgspec

from services.bench.load.stream import LoadRequest
from services.bench.policies.real import load_requests
from services.bench.serve.settings import FULL, HALF, NONE, SPLITS, ServeSettings, SplitCase


class Part(StrEnum):
    """What serves."""

    MESH = "mesh"
    """The whole mesh over HTTP, under load."""
    LONE = "mesh_one_request"
    """The whole mesh over HTTP, one request at a time."""
    PREFILL = "prefill_alone"
    DECODE = "decode_alone"
    TOGETHER = "stages_together"
    """Both stages at the same time, without a mesh between them."""
    ENGINE = "engine"
    """One engine that has both cores."""


class Trial(msgspec.Struct, frozen=True):
    """One thing to measure."""

    part: Part
    split: SplitCase

    def __str__(self) -> str:
        return f"{self.part.value.replace('_', ' ')}, split {self.split.name}"


_PARTS: Final = {
    FULL: (Part.MESH, Part.PREFILL, Part.DECODE, Part.TOGETHER, Part.LONE),
    HALF: (Part.MESH, Part.PREFILL, Part.DECODE, Part.TOGETHER, Part.LONE),
    NONE: (Part.MESH, Part.DECODE, Part.ENGINE, Part.LONE),
}
TRIALS: Final = tuple(Trial(part, split) for split in SPLITS for part in _PARTS[split])


def prompts_of(settings: ServeSettings, vocab_size: int, trial: Trial, number: int) -> tuple[LoadRequest, ...]:
    """The requests of run `number` of a trial: those of the mesh, its stages alone and the engine are the same.

    No two runs of one process have a prompt in common: KV kept from an earlier one would be found again.
    """
    apart = trial.part.value if trial.part in (Part.LONE, Part.TOGETHER) else "loop"
    seed = zlib.crc32(f"{apart} {trial.split.name} {number}".encode())
    workload = settings.lone() if trial.part is Part.LONE else settings.loop()
    requests = load_requests(workload, vocab_size, seed)
    return tuple(msgspec.structs.replace(request, split=trial.split.split) for request in requests)
