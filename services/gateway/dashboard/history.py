"""The last minutes of the gateway's counters, for a page that is opened late."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from common.tasks import TaskScope
from services.gateway.dashboard.types import Sample

EVERY_S: Final = 2.0
MOST_SAMPLES: Final = 150
"""Five minutes; some 100 kB."""


class History:
    """Reads a sample every EVERY_S and keeps the last MOST_SAMPLES. `read` is given the sample's number."""

    def __init__(self, read: Callable[[int], Sample]) -> None:
        self._read = read
        self._number = 0
        self._samples: deque[Sample] = deque(maxlen=MOST_SAMPLES)
        self._tasks = TaskScope("history")

    def start(self) -> None:
        """Begin, with a first sample at once."""
        self._tasks.start(self._run(), "sample")

    async def close(self) -> None:
        """End."""
        await self._tasks.close()

    def take(self) -> None:
        """Read a sample now."""
        self._samples.append(self._read(self._number))
        self._number += 1

    def since(self, number: int) -> Sequence[Sample]:
        """Those that are kept and come after `number`, the oldest first."""
        return [sample for sample in self._samples if sample.number > number]

    async def _run(self) -> None:
        while True:
            self.take()
            await asyncio.sleep(EVERY_S)
