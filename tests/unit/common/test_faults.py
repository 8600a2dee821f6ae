"""Deaths on order: only the process that is meant dies, and nothing else happens to the others."""

import threading
from pathlib import Path

import pytest

from common.faults import FaultPoint, Faults
from common.ids import InstanceId


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    signals: list[int] = []
    monkeypatch.setattr("common.faults.os.kill", lambda _, number: signals.append(number))
    return signals


def test_without_a_file_nothing_happens(tmp_path: Path, killed: list[int]) -> None:
    Faults(InstanceId("d1"), None).reach(FaultPoint.DECODE_ACCEPTED)
    Faults(InstanceId("d1"), str(tmp_path / "absent")).reach(FaultPoint.DECODE_ACCEPTED)
    assert killed == []


@pytest.mark.parametrize(("instance", "point"), [("p0", "decode-accepted"), ("d1", "decode-landed")])
def test_a_fault_meant_for_another_process_or_point_stays(
    instance: str, point: str, tmp_path: Path, killed: list[int]
) -> None:
    file = tmp_path / "fault"
    Faults.arm(file, InstanceId(instance), FaultPoint(point), "kill")
    Faults(InstanceId("d1"), str(file)).reach(FaultPoint.DECODE_ACCEPTED)
    assert killed == []
    assert file.exists()


def test_a_fault_is_met_once(tmp_path: Path, killed: list[int]) -> None:
    file = tmp_path / "fault"
    faults = Faults(InstanceId("d1"), str(file))
    Faults.arm(file, InstanceId("d1"), FaultPoint.DECODE_ACCEPTED, "stop")
    faults.reach(FaultPoint.DECODE_ACCEPTED)
    faults.reach(FaultPoint.DECODE_ACCEPTED)
    assert len(killed) == 1
    assert not file.exists()


def test_a_file_that_another_process_removes_meanwhile_is_no_error(tmp_path: Path, killed: list[int]) -> None:
    file = tmp_path / "fault"
    over = threading.Event()

    def meet_many() -> None:
        for _ in range(2000):
            Faults.arm(file, InstanceId("d1"), FaultPoint.DECODE_ACCEPTED, "kill")
            Faults(InstanceId("d1"), str(file)).reach(FaultPoint.DECODE_ACCEPTED)
        over.set()

    other = threading.Thread(target=meet_many)
    other.start()
    bystander = Faults(InstanceId("p0"), str(file))
    while not over.is_set():
        bystander.reach(FaultPoint.PREFILL_ACCEPTED)
    other.join()
    assert len(killed) == 2000
