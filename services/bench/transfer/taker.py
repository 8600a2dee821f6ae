"""Takes KV over from givers, and times it."""

import random
from collections.abc import Callable, Mapping
from itertools import count

import msgspec

from common.clock import Clock
from services.bench.transfer.caches import random_blocks
from services.bench.transfer.cases import TakeCase
from services.bench.transfer.desk import DEADLINE_S, Giver
from services.bench.transfer.messages import OfferKV
from services.bench.transfer.sinks import Sinks


class Taken(msgspec.Struct, frozen=True):
    """One hand-off."""

    seconds: float
    """From the call of `take` to its return."""
    cpu_s: float
    """CPU time of both processes, from the open offer to its acknowledged end."""
    wire_bytes: int
    tail_s: float
    """From the announcement of the last layer to the return of `take`."""


class Taker:
    """Sinks here, and for each scheme a giver that offers by it."""

    def __init__(self, sinks: Sinks, givers: Mapping[str, Giver], clock: Clock, cpu_s: Callable[[], float]) -> None:
        self._sinks = sinks
        self._givers = givers
        self._clock = clock
        self._cpu_s = cpu_s
        self._rng = random.Random(2)
        self._numbers = count()

    async def take(self, case: TakeCase, pace_s: float = 0.0) -> Taken:
        """One hand-off into blocks in random order. With `pace_s` the layers become ready over that time, and the take
        begins with it; otherwise all is ready before. Raises BenchError or a TransferError."""
        giver = self._givers[case.scheme]
        blocks = random_blocks(self._sinks.memories[case.layout], case.num_tokens, self._rng)
        sink = self._sinks.sink(case.layout, checksum=case.checksum)
        offered = await giver.offer(OfferKV(f"{next(self._numbers)}", case.scheme, case.num_tokens, pace_s))
        cpu_s, started_at = self._cpu_s(), self._clock.now()
        landed = await sink.take(offered.ticket, blocks, case.num_tokens, DEADLINE_S)
        ended_at = self._clock.now()
        ended = await giver.ended()
        return Taken(
            seconds=ended_at - started_at,
            cpu_s=ended.cpu_s - offered.cpu_s + self._cpu_s() - cpu_s,
            wire_bytes=landed.payload_bytes,
            tail_s=ended_at - ended.computed_at_s,
        )
