"""One side of a hand-off in a process of its own, to be killed or stopped.

    peer source [SCHEME]                gives half, and then computes for ever
    peer sink ENDPOINT                  takes over what is offered
    peer held-source SCHEME STAGE       goes as far as a stage (of SOURCE_STAGES) and then only shows signs of life
    peer held-sink ENDPOINT STAGE       the same, of SINK_STAGES
    peer late-source SCHEME             stops in mid-pack until told to go on, and then writes every zone

The first line on its stdout is the endpoint (of a source), and the next says that the stage is reached.
"""

import asyncio
import sys

from common.clock import SystemClock
from transfer.backends.base import Backend, Link
from transfer.backends.registry import installed_backends
from transfer.memory import PagedMemory
from transfer.protocol.messages import Accepted, Alive, SegmentWritten
from transfer.sink import KVSink
from transfer.source import KVSource
from transfer.testing import (
    D_GENERATION,
    DEADLINE_S,
    NUM_BLOCKS,
    NUM_TOKENS,
    P_GENERATION,
    SourcePuppet,
    TakerPuppet,
    example_layout,
    example_limits,
    make_ready,
    mesh,
    peer_ticket,
    random_memory,
)
from transfer.testing.puppets import accepted, segment

SOURCE_STAGES = ("connected", "opened", "accepted", "packing", "written")
SINK_STAGES = ("connected", "opened", "accepted", "landed")

_LIMITS = example_limits(progress_timeout_s=1.5)


def _backend(scheme: str) -> Backend:
    return installed_backends()[scheme]()()


def _backend_of(endpoint: str) -> Backend:
    return _backend(endpoint.partition("://")[0])


async def source(scheme: str = "tcp") -> None:
    """Offer two layers of four, and then compute for ever."""
    given = random_memory(example_layout())
    giver = KVSource(given, P_GENERATION, _LIMITS, SystemClock(), [_backend(scheme)])
    endpoints = await giver.start()
    offer = giver.offer(peer_ticket(endpoints), range(NUM_BLOCKS - 1, 0, -1), NUM_TOKENS, DEADLINE_S)
    make_ready(offer, 0, 2)
    print(endpoints[0], flush=True)
    await offer.ended()


async def sink(endpoint: str) -> None:
    """Take over what is offered."""
    taken = PagedMemory.zeros(example_layout(), NUM_BLOCKS)
    taker = KVSink(taken, D_GENERATION, _LIMITS, SystemClock(), [_backend_of(endpoint)])
    print("ready", flush=True)
    await taker.take(peer_ticket((endpoint,)), range(8), NUM_TOKENS, DEADLINE_S)


async def held_source(scheme: str, stage: str) -> None:
    """Say and do what a source does up to `stage`."""
    links: asyncio.Queue[Link] = asyncio.Queue()
    if stage == "connected":
        listener = await _backend(scheme).listen(links.put_nowait)
        print(listener.endpoint, flush=True)
        held = await links.get()
        print(stage, flush=True)
        await asyncio.Event().wait()
        await held.close()
    async with SourcePuppet.listening(_backend(scheme)) as (puppet, endpoints):
        print(endpoints[0], flush=True)
        await puppet.meet()
        if stage != "opened":
            await puppet.say(accepted())
        window = puppet.link.window(0, 1024)
        if stage == "packing" and window is not None:
            window[:500] = bytes(500)
        if stage == "written":
            await puppet.write(segment())
        await _hold(puppet, stage)


async def held_sink(endpoint: str, stage: str) -> None:
    """Say and hear what a sink does up to `stage`."""
    backend = _backend_of(endpoint)
    print("ready", flush=True)
    async with mesh(backend) as made:
        puppet = TakerPuppet(await backend.connect(endpoint), made)
        if stage == "connected":
            print(stage, flush=True)
            await asyncio.Event().wait()
        await puppet.say(puppet.open())
        if stage in ("accepted", "landed"):
            assert isinstance(await puppet.hear(), Accepted)
        if stage == "landed":
            assert isinstance(await puppet.hear(), SegmentWritten)
        await _hold(puppet, stage)


async def _hold(puppet: SourcePuppet | TakerPuppet, stage: str) -> None:
    print(stage, flush=True)
    while True:
        await puppet.say(Alive())
        await asyncio.sleep(0.1)


async def late_source(scheme: str) -> None:
    """Fill half a window; after a line on stdin, all windows. Blocks its event loop on purpose."""
    async with SourcePuppet.listening(_backend(scheme)) as (puppet, endpoints):
        print(endpoints[0], flush=True)
        request = await puppet.meet()
        await puppet.say(accepted())
        windows = [puppet.link.window(zone, _LIMITS.segment_bytes) for zone in range(request.zones)]
        assert windows[0] is not None
        windows[0][:512] = b"\x07" * 512
        print("packing", flush=True)
        sys.stdin.readline()
        for window in windows:
            assert window is not None
            window[:] = b"\xee" * len(window)
        print("written", flush=True)
        sys.stdin.readline()


async def main(arguments: list[str]) -> None:
    """What the first argument names."""
    match arguments:
        case ["source", *scheme]:
            await source(*scheme)
        case ["sink", endpoint]:
            await sink(endpoint)
        case ["held-source", scheme, stage]:
            await held_source(scheme, stage)
        case ["held-sink", endpoint, stage]:
            await held_sink(endpoint, stage)
        case ["late-source", scheme]:
            await late_source(scheme)
        case _:
            sys.exit(2)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
