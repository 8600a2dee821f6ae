"""Two real processes over tcp. One is killed or stopped wherever a hand-off can be; the other is left clean."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.kv.ownership import TakerFailed
from tests.contract.peer import SINK_STAGES, SOURCE_STAGES
from tests.contract.tcp_peer import ZONE_BYTES
from tests.contract.tcp_wire import ALWAYS, lane_threads, until_striped
from transfer.backends.tcp import Striping, TcpBackend
from transfer.backends.tcp.link import SinkLink
from transfer.errors import PeerLost, TimedOut, TransferError
from transfer.testing import NUM_TOKENS, eventually, example_limits, make_ready, mesh

LIMITS = example_limits(progress_timeout_s=1.5)
HALF = 2 * NUM_TOKENS * 128
"""Bytes of two of the four layers."""


@asynccontextmanager
async def peer(*arguments: str, module: str = "peer") -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process and the first line it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.contract.{module}",
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


KILL_OR_STOP = [(signal.SIGKILL, PeerLost), (signal.SIGSTOP, TimedOut)]
HOW_P_SEES_IT = [(signal.SIGKILL, "connection"), (signal.SIGSTOP, "no sign of life")]


async def next_line(process: asyncio.subprocess.Process) -> str:
    """What it prints next."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize(("sign", "error"), KILL_OR_STOP)
async def test_the_source_is_killed_or_stopped(sign: signal.Signals, error: type[TransferError]) -> None:
    async with mesh(TcpBackend(), limits=LIMITS) as made, peer("source") as (process, endpoint):
        take = made.take(endpoints=(endpoint,))
        await eventually(lambda: made.sink.payload_bytes_received == HALF)
        process.send_signal(sign)
        with pytest.raises(error):
            await take
        await made.assert_works()


@pytest.mark.parametrize("striping", [Striping(), ALWAYS], ids=["one connection", "striped"])
@pytest.mark.parametrize(("sign", "reason"), HOW_P_SEES_IT)
async def test_the_sink_is_killed_or_stopped(sign: signal.Signals, reason: str, striping: Striping) -> None:
    async with mesh(TcpBackend(striping=striping), limits=LIMITS) as made:
        offer = made.offer(layers=2)
        async with peer("sink", made.endpoints[0]) as (process, _):
            await eventually(lambda: made.source.payload_bytes_sent == HALF)
            if striping is ALWAYS:
                await until_striped(made)
            process.send_signal(sign)
            make_ready(offer, 2, 4)
            end = await offer.ended()
        assert isinstance(end, TakerFailed)
        assert reason in end.reason
        await made.assert_works()
    assert lane_threads() == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", SOURCE_STAGES)
@pytest.mark.parametrize(("sign", "error"), KILL_OR_STOP)
async def test_a_source_at_a_stage(sign: signal.Signals, error: type[TransferError], stage: str) -> None:
    async with mesh(TcpBackend(), limits=LIMITS) as made, peer("held-source", "tcp", stage) as (process, endpoint):
        take = made.take(endpoints=(endpoint,))
        assert await next_line(process) == stage
        process.send_signal(sign)
        with pytest.raises(error):
            await take
        await made.assert_works()


@pytest.mark.slow
@pytest.mark.parametrize("stage", SINK_STAGES)
@pytest.mark.parametrize(("sign", "reason"), HOW_P_SEES_IT)
async def test_a_sink_at_a_stage(sign: signal.Signals, reason: str, stage: str) -> None:
    async with mesh(TcpBackend(), limits=LIMITS) as made:
        offer = made.offer(layers=2)
        async with peer("held-sink", made.endpoints[0], stage) as (process, _):
            assert await next_line(process) == stage
            process.send_signal(sign)
            if stage == "connected":
                await eventually(lambda: made.source.connections_broken == 1)
                offer.withdraw("nobody came")
            else:
                end = await offer.ended()
                assert isinstance(end, TakerFailed)
                assert reason in end.reason
        await made.assert_works()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_source_in_the_middle_of_striped_segments(sign: signal.Signals) -> None:
    """Killed: the next message never comes. Stopped: nothing is heard any more, and closing does not wait for it."""
    backend = TcpBackend(striping=ALWAYS)
    async with peer(module="tcp_peer") as (process, endpoint):
        link = await backend.connect(endpoint)
        assert isinstance(link, SinkLink)
        link.register([backend.allocate(ZONE_BYTES)])
        await link.send(b"begin")
        while not link._lanes or link._lanes[0].landed < 10:
            await link.receive()
        process.send_signal(sign)
        if sign is signal.SIGKILL:
            with pytest.raises(PeerLost):
                await receive_for_ever(link)
        else:
            await until_silent(link)
        await link.close()
    assert lane_threads() == 0


async def receive_for_ever(link: SinkLink) -> None:
    """Until it raises."""
    while True:
        await link.receive()


async def until_silent(link: SinkLink) -> None:
    """Until nothing has been heard for a while."""
    reading = asyncio.get_running_loop().create_task(receive_for_ever(link))
    heard = -1
    while link.bytes_heard != heard:
        heard = link.bytes_heard
        await asyncio.sleep(0.2)
    assert not reading.done()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
