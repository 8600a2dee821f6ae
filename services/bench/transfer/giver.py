"""The giver process: a source of KV and of raw bytes, driven by JSON lines. Ends when its stdin does."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import assert_never

import msgspec
import numpy as np
import uvloop

from common.clock import SystemClock
from common.errors import PdmeshError
from services.bench.transfer.backends import usable_backends
from services.bench.transfer.caches import touched_memory
from services.bench.transfer.cases import SOURCE
from services.bench.transfer.desk import GivingDesk
from services.bench.transfer.limits import bench_limits
from services.bench.transfer.messages import (
    AwaitEnd,
    FromGiver,
    Gave,
    GiveRaw,
    GiverPlan,
    Giving,
    Listening,
    MeetPeer,
    OfferKV,
    PeerMet,
    ToGiver,
    Trouble,
)
from services.bench.transfer.peers.base import RawGiver
from services.bench.transfer.peers.registry import every_peer
from transfer.backends.registry import installed_backends

Say = Callable[[FromGiver], None]


class _RawDesk:
    """Gives one buffer by raw peers."""

    def __init__(self, num_bytes: int) -> None:
        self._buffer = np.full(num_bytes, 1, dtype=np.uint8)
        self._peers = every_peer(SystemClock())
        self._givers: dict[str, RawGiver] = {}

    def meet(self, peer: str, hello: bytes) -> bytes:
        os.environ.update(self._peers[peer].environ)  # noqa: TID251 - this process is the root
        self._givers[peer] = self._peers[peer].giver(self._buffer)
        return self._givers[peer].meet(hello)

    def give(self, peer: str, num_bytes: int) -> None:
        self._givers[peer].give(num_bytes)

    def close(self) -> None:
        while self._givers:
            self._givers.popitem()[1].close()


async def serve(plan: GiverPlan, commands: AsyncIterator[ToGiver], say: Say) -> None:
    """Carry out `commands` one after the other, until there are no more."""
    loaders = {scheme: load for scheme, load in installed_backends().items() if scheme in plan.schemes}
    backends = usable_backends(loaders).backends
    memory = touched_memory(SOURCE, plan.num_tokens)
    desk = GivingDesk(memory, backends, bench_limits(plan.segment_bytes), SystemClock(), time.process_time)
    raw = _RawDesk(plan.raw_bytes)
    try:
        await desk.start()
        say(Listening(dict(desk.endpoints)))
        async for command in commands:
            try:
                await _carry_out(command, desk, raw, say)
            except Exception as error:  # whatever a peer's library raises is reported, not fatal
                say(Trouble(f"{type(error).__name__}: {error}" if not isinstance(error, PdmeshError) else str(error)))
    finally:
        raw.close()
        await desk.close()


async def _carry_out(command: ToGiver, desk: GivingDesk, raw: _RawDesk, say: Say) -> None:
    match command:
        case OfferKV():
            say(await desk.offer(command))
        case AwaitEnd():
            say(await desk.ended())
        case MeetPeer(peer=peer, hello=hello):
            say(PeerMet(raw.meet(peer, hello)))
        case GiveRaw(peer=peer, num_bytes=num_bytes):
            say(Giving(time.process_time()))
            raw.give(peer, num_bytes)
            say(Gave(time.process_time()))
        case _:
            assert_never(command)


async def _commands() -> AsyncIterator[ToGiver]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    decoder: msgspec.json.Decoder[ToGiver] = msgspec.json.Decoder(ToGiver)
    while line := await reader.readline():
        yield decoder.decode(line)


def main() -> None:
    """The one argument is a GiverPlan in JSON."""
    plan = msgspec.json.decode(sys.argv[1], type=GiverPlan)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    # Libraries that print must not spoil the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(answer: FromGiver) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")

    uvloop.run(serve(plan, _commands(), say))


if __name__ == "__main__":
    main()
