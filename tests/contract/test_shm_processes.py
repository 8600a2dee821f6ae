"""Two real processes over shm. One is killed or stopped wherever a hand-off can be; the other is left clean."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.kv.ownership import Acknowledged, TakerFailed
from tests.contract.holdings import nothing_left, zones_mapped
from tests.contract.peer import SINK_STAGES, SOURCE_STAGES
from transfer.backends.base import Buffer
from transfer.backends.shm.backend import ShmBackend
from transfer.backends.shm.memory import OwnZone
from transfer.errors import PeerLost, TimedOut, TransferError
from transfer.testing import NUM_TOKENS, eventually, example_limits, make_ready, mesh

LIMITS = example_limits(progress_timeout_s=1.5)
HALF = 2 * NUM_TOKENS * 128
"""Bytes of two of the four layers."""

KILL_OR_STOP = [(signal.SIGKILL, PeerLost), (signal.SIGSTOP, TimedOut)]


class Peer:
    """A process of tests.contract.peer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def go_on(self) -> None:
        """Give it a line to read."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def signal(self, sign: signal.Signals) -> None:
        """Kill, stop or continue it."""
        self._process.send_signal(sign)

    @classmethod
    @asynccontextmanager
    async def running(cls, *arguments: str) -> AsyncIterator["Peer"]:
        """A peer, killed in the end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.contract.peer",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        try:
            yield cls(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.fixture(autouse=True)
def _no_records(caplog: pytest.LogCaptureFixture) -> None:
    """A captured record holds its error, that its traceback, and that the window which was being filled."""
    caplog.set_level(logging.CRITICAL, logger="transfer")


@pytest.fixture(autouse=True)
async def _first_process() -> None:
    """What asyncio opens once, for the first child of a loop, is no leak."""
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("stage", SOURCE_STAGES)
@pytest.mark.parametrize(("sign", "error"), KILL_OR_STOP)
async def test_a_source_killed_or_stopped(sign: signal.Signals, error: type[TransferError], stage: str) -> None:
    async with (
        nothing_left(),
        mesh(ShmBackend(), limits=LIMITS) as made,
        Peer.running("held-source", "shm", stage) as p,
    ):
        take = made.take(endpoints=(await p.line(),))
        assert await p.line() == stage
        p.signal(sign)
        with pytest.raises(error):
            await take
        await made.assert_works()


@pytest.mark.slow
@pytest.mark.parametrize("stage", SINK_STAGES)
@pytest.mark.parametrize(("sign", "reason"), [(signal.SIGKILL, "connection"), (signal.SIGSTOP, "no sign of life")])
async def test_a_sink_killed_or_stopped(sign: signal.Signals, reason: str, stage: str) -> None:
    async with nothing_left(), mesh(ShmBackend(), limits=LIMITS) as made:
        offer = made.offer(layers=2)
        async with Peer.running("held-sink", made.endpoints[0], stage) as p:
            assert [await p.line(), await p.line()] == ["ready", stage]
            p.signal(sign)
            if stage == "connected":
                await eventually(lambda: made.source.connections_broken == 1)
                offer.withdraw("nobody came")
            else:
                end = await offer.ended()
                assert isinstance(end, TakerFailed)
                assert reason in end.reason
        await made.assert_works()


@pytest.mark.parametrize(("sign", "error"), KILL_OR_STOP)
async def test_a_real_source_killed_or_stopped(sign: signal.Signals, error: type[TransferError]) -> None:
    async with nothing_left(), mesh(ShmBackend(), limits=LIMITS) as made, Peer.running("source", "shm") as p:
        take = made.take(endpoints=(await p.line(),))
        await eventually(lambda: made.sink.payload_bytes_received == HALF)
        p.signal(sign)
        with pytest.raises(error):
            await take
        await made.assert_works()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_real_sink_killed_or_stopped(sign: signal.Signals) -> None:
    async with nothing_left(), mesh(ShmBackend(), limits=LIMITS) as made:
        offer = made.offer(layers=2)
        async with Peer.running("sink", made.endpoints[0]) as p:
            assert await p.line() == "ready"
            await eventually(lambda: made.source.payload_bytes_sent == HALF)
            p.signal(sign)
            make_ready(offer, 2, 4)
            assert isinstance(await offer.ended(), TakerFailed)
        await made.assert_works()


async def test_across_processes() -> None:
    """Nobody dies."""
    async with nothing_left(), mesh(ShmBackend(), limits=LIMITS) as made:
        offer = made.offer()
        async with Peer.running("sink", made.endpoints[0]):
            assert isinstance(await offer.ended(), Acknowledged)


class _Watched(ShmBackend):
    """Keeps a descriptor of each zone that it makes, to look into it later."""

    def __init__(self) -> None:
        super().__init__()
        self.fds: list[int] = []

    def allocate(self, num_bytes: int) -> Buffer:
        buffer = super().allocate(num_bytes)
        assert isinstance(buffer.handle, OwnZone)
        self.fds.append(os.dup(buffer.handle.fd))
        return buffer


async def test_a_source_that_writes_after_it_was_given_up_harms_nobody() -> None:
    """Stopped in mid-pack, taken for lost, continued: it writes all its zones while another hand-off is under way."""
    backend = _Watched()
    async with nothing_left():
        async with mesh(backend, limits=LIMITS) as made, Peer.running("late-source", "shm") as p:
            take = made.take(endpoints=(await p.line(),))
            assert await p.line() == "packing"
            p.signal(signal.SIGSTOP)
            with pytest.raises(TimedOut):
                await take
            spoiled = list(backend.fds)

            offer, take = made.offer("next", layers=2, first=8), made.take("next", first=8)
            await eventually(lambda: made.sink.payload_bytes_received == HALF)
            p.signal(signal.SIGCONT)
            p.go_on()
            assert await p.line() == "written"
            assert len(spoiled) == LIMITS.landing_zones
            assert all(os.pread(fd, 1024, 0) == b"\xee" * 1024 for fd in spoiled)
            assert not {os.fstat(fd).st_ino for fd in spoiled} & set(zones_mapped())

            make_ready(offer, 2, 4)
            await take
            made.assert_arrived(first=8)
        for fd in backend.fds:
            os.close(fd)
