"""The mooncake peer: against a stand-in for its library, and against the library itself where it is installed."""

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import pytest

from common.clock import SystemClock
from services.bench.transfer.cases import RawCase
from services.bench.transfer.giver_process import GiverProcess
from services.bench.transfer.messages import GiverPlan
from services.bench.transfer.peers.base import Bytes, RawGiver, RawTaker
from services.bench.transfer.peers.mooncake import Mooncake, acknowledging
from services.bench.transfer.peers.registry import YARDSTICKS, every_peer, present
from services.bench.transfer.raw import RawMover

SIZE = 3 << 20
BATCH = 7


@dataclass
class Faults:
    """What the stand-in does, for every engine of a test."""

    initialized: int = 0
    batch: int = BATCH
    statuses: tuple[int, ...] = (0, 0, 1)
    """Answers to one batch; the bytes land with a 1."""
    registered: dict[int, int] = field(default_factory=dict)
    written: list[tuple[str, int]] = field(default_factory=list)


class StandIn:
    """The calls of mooncake.engine.TransferEngine that the peer makes."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._answers: Iterator[int] = iter(())
        self._land: Callable[[], object] = lambda: None

    def initialize(self, host: str, metadata: str, protocol: str, device: str) -> int:
        assert (host, metadata, protocol, device) == ("127.0.0.1", "P2PHANDSHAKE", "tcp", "")
        return self._faults.initialized

    def get_rpc_port(self) -> int:
        return 12345

    def register_memory(self, address: int, num_bytes: int) -> int:
        self._faults.registered[address] = num_bytes
        return 0

    def unregister_memory(self, address: int) -> int:
        del self._faults.registered[address]
        return 0

    def transfer_submit_write(self, segment: str, source: int, target: int, num_bytes: int) -> int:
        assert source in self._faults.registered
        assert num_bytes <= self._faults.registered[target]
        self._faults.written.append((segment, num_bytes))
        self._answers = iter(self._faults.statuses)
        self._land = lambda: ctypes.memmove(target, source, num_bytes)
        return self._faults.batch

    def transfer_check_status(self, batch: int) -> int:
        assert batch == BATCH, "the library would crash"
        status = next(self._answers)
        if status == 1:
            self._land()
        return status


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    found = Faults()
    module = ModuleType("mooncake.engine")
    monkeypatch.setattr(module, "TransferEngine", lambda: StandIn(found), raising=False)
    monkeypatch.setitem(sys.modules, "mooncake.engine", module)
    return found


def filled(value: int) -> Bytes:
    return np.full(SIZE, value, dtype=np.uint8)


@pytest.fixture
def source() -> Bytes:
    return filled(1)


@pytest.fixture
def target() -> Bytes:
    return filled(2)


@pytest.fixture
def ends(faults: Faults, source: Bytes, target: Bytes) -> Iterator[tuple[RawGiver, RawTaker]]:
    """Both in this process, met."""
    peer = Mooncake(SystemClock())
    giver, taker = peer.giver(source), peer.taker(target)
    try:
        taker.meet(giver.meet(taker.hello()))
        yield giver, taker
    finally:
        taker.close()
        giver.close()


def move(ends: tuple[RawGiver, RawTaker], num_bytes: int) -> tuple[BaseException | None, BaseException | None]:
    """What the giver and the taker raise."""
    giver, taker = ends
    with ThreadPoolExecutor(1) as pool:
        giving = pool.submit(giver.give, num_bytes)
        try:
            taker.take(num_bytes)
        except OSError as error:
            return giving.exception(), error
        return giving.exception(), None


def test_mooncake_is_a_peer_and_no_yardstick():
    assert "mooncake" in every_peer(SystemClock())
    assert "mooncake" not in YARDSTICKS


def test_without_the_library_it_is_left_out_and_says_what_brings_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mooncake.engine", None)
    found = present([Mooncake(SystemClock())])
    assert not found.versions
    assert "pip install mooncake-transfer-engine-non-cuda" in found.skipped["mooncake"]
    assert "libibverbs1" in found.skipped["mooncake"]


@pytest.mark.usefixtures("faults")
def test_a_module_of_that_name_that_no_wheel_brought_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("services.bench.transfer.peers.mooncake.packages_distributions", lambda: {"mooncake": ["moon"]})
    assert "no installed package" in present([Mooncake(SystemClock())]).skipped["mooncake"]


@pytest.mark.parametrize("found", ["0.3.12", "0.3.13.post1", "0.4.0rc1", "1.0"])
def test_versions_that_acknowledge_a_write_are_taken(found: str):
    assert acknowledging(found) == found


@pytest.mark.parametrize("found", ["0.3.11.post1", "0.2.99", "0.3"])
def test_versions_that_end_a_write_before_it_has_landed_are_not(found: str):
    with pytest.raises(ImportError, match=f"{found} .* install 0.3.12 or later"):
        acknowledging(found)


def test_a_take_returns_when_the_write_has_landed(
    ends: tuple[RawGiver, RawTaker], faults: Faults, source: Bytes, target: Bytes
):
    assert move(ends, 1000) == (None, None)
    assert (target[:1000] == 1).all()
    assert (target[1000:] == 2).all()
    source[:] = 3
    assert move(ends, SIZE) == (None, None)
    assert (target == 3).all()
    assert faults.written == [("127.0.0.1:12345", 1000), ("127.0.0.1:12345", SIZE)]


@pytest.mark.parametrize("batch", [0, 2**64 - 1])
def test_a_refused_write_is_an_error_at_both_sides_and_is_not_asked_for(
    ends: tuple[RawGiver, RawTaker], faults: Faults, batch: int
):
    faults.batch = batch
    given, taken = move(ends, 1000)
    assert isinstance(given, OSError)
    assert "no WRITE of 1000 bytes to 127.0.0.1:12345" in str(given)
    assert isinstance(taken, ConnectionError)
    assert "could not write" in str(taken)


@pytest.mark.parametrize("status", [-1, -2])
def test_after_a_failed_write_the_next_one_can_go_well(
    ends: tuple[RawGiver, RawTaker], faults: Faults, target: Bytes, status: int
):
    faults.statuses = (0, status)
    given, taken = move(ends, 1000)
    assert f"status {status}" in str(given)
    assert "could not write" in str(taken)
    assert (target == 2).all()
    faults.statuses = (1,)
    assert move(ends, 1000) == (None, None)


def test_a_side_that_is_gone_is_an_error_at_the_other(ends: tuple[RawGiver, RawTaker]):
    giver, taker = ends
    with ThreadPoolExecutor(1) as pool:
        giving = pool.submit(giver.give, 1000)
        taker.close()
        assert isinstance(giving.exception(), ConnectionError)


def test_an_engine_that_does_not_start_is_an_error(faults: Faults, target: Bytes):
    faults.initialized = -1
    with pytest.raises(OSError, match="initialize failed with status -1"):
        Mooncake(SystemClock()).taker(target)


def test_closing_lets_go_of_the_memory_once(ends: tuple[RawGiver, RawTaker], faults: Faults):
    assert len(faults.registered) == 2
    for end in (*ends, *ends):
        end.close()
    assert not faults.registered


async def test_the_library_itself_moves_the_bytes_from_the_other_process(monkeypatch: pytest.MonkeyPatch):
    peer = Mooncake(SystemClock())
    if reason := present([peer]).skipped.get(peer.name):
        pytest.skip(f"needs the mooncake library: {reason}")
    for name, value in peer.environ.items():
        monkeypatch.setenv(name, value)
    process = await GiverProcess.start(GiverPlan(("tcp",), 64 << 10, 16, SIZE))
    mover = RawMover(process, {peer.name: peer}, SIZE, SystemClock(), time.process_time)
    try:
        await mover.meet(peer.name)  # which looks at the bytes
        moved = await mover.move(RawCase(peer.name, SIZE))
    finally:
        mover.close()
        await process.close()
    assert moved.wire_bytes == SIZE
    assert moved.cpu_s > 0
