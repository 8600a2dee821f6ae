"""The giver as a process, raw peers, and the whole command."""

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from services.bench.transfer.cases import RawCase
from services.bench.transfer.errors import BenchError
from services.bench.transfer.giver_process import GiverProcess
from services.bench.transfer.messages import GiverPlan
from services.bench.transfer.peers.base import Bytes, Peer, RawGiver, RawTaker, poll
from services.bench.transfer.peers.raw_tcp import RawTcp
from services.bench.transfer.peers.registry import YARDSTICKS, every_peer, present
from services.bench.transfer.raw import RawMover

SIZE = 3 << 20
PLAN = GiverPlan(("tcp",), 64 << 10, 16, SIZE)


@asynccontextmanager
async def giver() -> AsyncIterator[GiverProcess]:
    process = await GiverProcess.start(PLAN)
    try:
        yield process
    finally:
        await process.close()


@pytest.mark.parametrize("yardstick", YARDSTICKS)
async def test_the_yardsticks_move_the_bytes_from_the_other_process(yardstick: str):
    async with giver() as process:
        mover = RawMover(process, every_peer(SystemClock()), SIZE, SystemClock(), time.process_time)
        try:
            await mover.meet(yardstick)  # which looks at the bytes
            moved = await mover.move(RawCase(yardstick, SIZE))
        finally:
            mover.close()
    assert moved.wire_bytes == SIZE
    assert moved.cpu_s > 0


async def test_a_peer_that_only_says_it_is_done_is_found_out():
    class Liar(Peer):
        name, settings = RawTcp.name, ""

        def version(self) -> str:
            return "0"

        def giver(self, buffer: Bytes) -> RawGiver:
            raise NotImplementedError("the other process has its own")

        def taker(self, buffer: Bytes) -> RawTaker:
            return RawTcp().taker(buffer.copy())

    async with giver() as process:
        mover = RawMover(process, {Liar.name: Liar()}, SIZE, SystemClock(), time.process_time)
        try:
            with pytest.raises(OSError, match="the bytes are not there"):
                await mover.meet(Liar.name)
        finally:
            mover.close()


async def test_what_the_giver_cannot_do_is_an_error_and_it_goes_on():
    async with giver() as process:
        with pytest.raises(BenchError, match="nothing has been offered"):
            await process.ended()
        with pytest.raises(BenchError, match="KeyError"):
            await process.meet("nobody", b"")
        assert set(process.endpoints) == {"tcp"}


async def test_a_giver_that_is_gone_is_an_error():
    process = await GiverProcess.start(PLAN)
    await process.close()
    with pytest.raises(BenchError, match="has ended"):
        await process.ended()


def test_a_peer_that_is_not_installed_is_skipped_with_its_reason():
    class Absent(RawTcp):
        name = "absent"

        def version(self) -> str:
            raise ImportError("no such library")

    found = present([RawTcp(), Absent()])
    assert list(found.versions) == [RawTcp.name]
    assert found.skipped == {"absent": "ImportError: no such library"}


def test_polling_ends():
    times: Iterator[float] = iter([0.0, 1.0, 1e9])
    with pytest.raises(TimeoutError, match="a thing took more than"):
        poll(lambda: False, lambda: next(times), "a thing")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Of a whole quick run, as a user starts it."""
    file = tmp_path_factory.mktemp("bench") / "out.json"
    command = [sys.executable, "-m", "services.cli.main", "bench", "transfer", "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=240)
    assert done.returncode == 0, done.stderr
    read: Mapping[str, Any] = json.loads(file.read_text())
    return read


def test_the_report_has_every_part(report: Mapping[str, Any]):
    assert set(report) == {"command", "commit", "date", "machine", "rows", "summary"}
    assert report["command"].startswith("pdmesh bench transfer --quick")


def test_every_row_is_flat_and_says_where_and_how_often(report: Mapping[str, Any]):
    for row in report["rows"]:
        assert row["where"] == ("emulated" if row["kind"] == "layerwise" else "real")
        assert row["repeats"] == 2
        assert all(isinstance(value, str | int | float | bool | None) for value in row.values())


def test_medians_stand_between_their_extremes(report: Mapping[str, Any]):
    names = {(index, name) for index, row in enumerate(report["rows"]) for name in row if f"{name}_min" in row}
    assert {name for _, name in names} >= {"gb_per_s", "cpu_s_per_gb", "plan_ms", "tail_over_transfer", "over_copy"}
    for index, name in names:
        row = report["rows"][index]
        assert row[f"{name}_min"] <= row[name] <= row[f"{name}_max"]


def test_every_backend_size_layout_and_checksum_has_a_row(report: Mapping[str, Any]):
    rates = [row for row in report["rows"] if row["kind"] == "rate"]
    ours = {(row["backend"], row["size_bytes"], row["layout"], row["checksum"]) for row in rates if not row["peer"]}
    schemes = {row["backend"] for row in rates if not row["peer"]}
    assert schemes >= {"inproc", "tcp"}
    assert len(ours) == len(schemes) * 2 * 3 * 2
    assert {row["backend"] for row in rates if row["peer"]} == {"memcpy", "raw_tcp", "raw_ring"}
    assert all(row["version"] and row["settings"] for row in rates if row["peer"])
    assert all(row["gb_per_s"] > 0 for row in rates)


def test_the_other_kinds_are_there(report: Mapping[str, Any]):
    kinds = {row["kind"] for row in report["rows"]}
    assert kinds == {"rate", "kernel", "plan", "pipeline", "layerwise"}


def test_the_summary_has_the_goals(report: Mapping[str, Any]):
    assert {
        "tcp_over_raw_tcp_16MiB",
        "full_over_identity_tcp_16MiB",
        "checksum_over_none_tcp_16MiB",
        "kernel_reorder_over_copy",
        "kernel_full_over_copy",
        "kernel_identity_over_copy",
    } <= set(report["summary"])
    assert all(isinstance(value, float) and value > 0 for value in report["summary"].values())


def test_a_file_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "services.cli.main",
        "bench",
        "transfer",
        "--json",
        str(tmp_path / "no" / "o.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60)
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert "Traceback" not in done.stderr
