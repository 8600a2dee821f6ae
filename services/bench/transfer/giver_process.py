"""The giver process as the bench process holds it."""

import asyncio
import sys
from typing import Self, TypeVar

import msgspec

from services.bench.transfer.errors import BenchError
from services.bench.transfer.messages import (
    AwaitEnd,
    FromGiver,
    Gave,
    GiveRaw,
    GiverPlan,
    Giving,
    Listening,
    MeetPeer,
    Offered,
    OfferEnded,
    OfferKV,
    PeerMet,
    ToGiver,
    Trouble,
)

Answer = TypeVar("Answer", bound=FromGiver)

_PROGRAM = (sys.executable, "-m", "services.bench.transfer.giver")
_LEAVE_S = 10.0


class GiverProcess:
    """A Giver in a process of its own, so that both sides have a core. Its stderr is ours."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._decoder: msgspec.json.Decoder[FromGiver] = msgspec.json.Decoder(FromGiver)
        self.endpoints: dict[str, str] = {}

    @classmethod
    async def start(cls, plan: GiverPlan) -> Self:
        """Ready when this returns; the caller closes it. Raises BenchError."""
        process = await asyncio.create_subprocess_exec(
            *_PROGRAM,
            msgspec.json.encode(plan).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the bench process, which then ends this one
        )
        giver = cls(process)
        try:
            giver.endpoints = (await giver._hear(Listening)).endpoints
        except BaseException:
            await giver.close()
            raise
        return giver

    async def offer(self, order: OfferKV) -> Offered:
        """See Giver."""
        return await self._ask(order, Offered)

    async def ended(self) -> OfferEnded:
        """See Giver."""
        return await self._ask(AwaitEnd(), OfferEnded)

    async def meet(self, peer: str, hello: bytes) -> bytes:
        """Make the giver's end of a raw peer. Raises BenchError."""
        return (await self._ask(MeetPeer(peer, hello), PeerMet)).hello

    async def start_raw(self, peer: str, num_bytes: int) -> Giving:
        """Let it wait for the taker's start; then take, and call `raw_done`. Raises BenchError."""
        return await self._ask(GiveRaw(peer, num_bytes), Giving)

    async def raw_done(self) -> Gave:
        """When the giver's part is done; raises BenchError."""
        return await self._hear(Gave)

    async def close(self) -> None:
        """End the process: it leaves when its stdin closes, or is killed."""
        assert self._process.stdin is not None, "started with a pipe"
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, command: ToGiver, answer: type[Answer]) -> Answer:
        assert self._process.stdin is not None, "started with a pipe"
        self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        return await self._hear(answer)

    async def _hear(self, answer: type[Answer]) -> Answer:
        assert self._process.stdout is not None, "started with a pipe"
        line = await self._process.stdout.readline()
        if not line:
            raise BenchError("the giver process has ended; its last words are above")
        heard = self._decoder.decode(line)
        if isinstance(heard, Trouble):
            raise BenchError(f"the giver process: {heard.message}")
        if not isinstance(heard, answer):
            raise BenchError(f"the giver process said {heard!r} instead of {answer.__name__}")
        return heard
