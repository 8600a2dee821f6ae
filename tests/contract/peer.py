"""One side of a hand-off in a process of its own, to be killed or stopped: peer source | peer sink ENDPOINT."""

import asyncio
import sys

from common.clock import SystemClock
from transfer.backends.tcp import TcpBackend
from transfer.memory import PagedMemory
from transfer.sink import KVSink
from transfer.source import KVSource
from transfer.testing import (
    D_GENERATION,
    DEADLINE_S,
    NUM_BLOCKS,
    NUM_TOKENS,
    P_GENERATION,
    example_layout,
    example_limits,
    make_ready,
    peer_ticket,
    random_memory,
)


async def source() -> None:
    """Offer two layers of four, and then compute for ever."""
    given = random_memory(example_layout())
    giver = KVSource(given, P_GENERATION, example_limits(progress_timeout_s=1.5), SystemClock(), [TcpBackend()])
    endpoints = await giver.start()
    offer = giver.offer(peer_ticket(endpoints), range(NUM_BLOCKS - 1, 0, -1), NUM_TOKENS, DEADLINE_S)
    make_ready(offer, 0, 2)
    print(endpoints[0], flush=True)
    await offer.ended()


async def sink(endpoint: str) -> None:
    """Take over what is offered."""
    taken = PagedMemory.zeros(example_layout(), NUM_BLOCKS)
    taker = KVSink(taken, D_GENERATION, example_limits(progress_timeout_s=1.5), SystemClock(), [TcpBackend()])
    print("ready", flush=True)
    await taker.take(peer_ticket((endpoint,)), range(8), NUM_TOKENS, DEADLINE_S)


match sys.argv[1:]:
    case ["source"]:
        asyncio.run(source())
    case ["sink", endpoint]:
        asyncio.run(sink(endpoint))
    case _:
        sys.exit(2)
