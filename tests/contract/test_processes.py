"""Two real processes over tcp, one of which is killed or stopped in the middle of a hand-off."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.kv.ownership import TakerFailed
from transfer.backends.tcp import TcpBackend
from transfer.errors import PeerLost, TimedOut, TransferError
from transfer.testing import NUM_TOKENS, eventually, example_limits, make_ready, mesh

LIMITS = example_limits(progress_timeout_s=1.5)
HALF = 2 * NUM_TOKENS * 128
"""Bytes of two of the four layers."""


@asynccontextmanager
async def peer(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process and the first line it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.peer",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(("sign", "error"), [(signal.SIGKILL, PeerLost), (signal.SIGSTOP, TimedOut)])
async def test_the_source_is_killed_or_stopped(sign: signal.Signals, error: type[TransferError]) -> None:
    async with mesh(TcpBackend(), limits=LIMITS) as made, peer("source") as (process, endpoint):
        take = made.take(endpoints=(endpoint,))
        await eventually(lambda: made.sink.payload_bytes_received == HALF)
        process.send_signal(sign)
        with pytest.raises(error):
            await take
        await made.assert_works()


@pytest.mark.parametrize(("sign", "reason"), [(signal.SIGKILL, "connection"), (signal.SIGSTOP, "no sign of life")])
async def test_the_sink_is_killed_or_stopped(sign: signal.Signals, reason: str) -> None:
    async with mesh(TcpBackend(), limits=LIMITS) as made:
        offer = made.offer(layers=2)
        async with peer("sink", made.endpoints[0]) as (process, _):
            await eventually(lambda: made.source.payload_bytes_sent == HALF)
            process.send_signal(sign)
            make_ready(offer, 2, 4)
            end = await offer.ended()
        assert isinstance(end, TakerFailed)
        assert reason in end.reason
        await made.assert_works()
