"""The emulated slower device: everything is seen at its pace."""

import pytest

from services.engine.measuring.slowdown import Slowdown


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


def test_each_piece_is_seen_at_the_pace_of_the_slower_device() -> None:
    time = Time()
    slow = Slowdown(3.0, time, time.pass_by)
    seen: list[float] = []

    def work() -> None:
        for _ in range(4):
            time.pass_by(1.0)
            slow.catch_up()
            seen.append(time.now() - 100.0)
        time.pass_by(0.5)

    assert slow.run(work) == pytest.approx(13.5)
    assert seen == pytest.approx([3.0, 6.0, 9.0, 12.0])


def test_what_is_said_between_steps_waits_for_nothing() -> None:
    time = Time()
    slow = Slowdown(3.0, time, time.pass_by)
    assert slow.run(lambda: None) == 0.0
    time.pass_by(1000.0)
    slow.catch_up()
    assert time.now() == 1100.0
    with pytest.raises(RuntimeError):
        slow.run(lambda: (_ for _ in ()).throw(RuntimeError("the device")).__next__())
    time.pass_by(5.0)
    slow.catch_up()
    assert time.now() == 1105.0


def test_an_ordinary_device_never_waits() -> None:
    time = Time()

    def sleep(_: float) -> None:
        raise AssertionError("slept")

    plain = Slowdown(1.0, time, sleep)
    assert plain.run(lambda: (time.pass_by(2.0), plain.catch_up())) == 2.0


def test_small_pieces_are_waited_for_together() -> None:
    time = Time()
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        time.pass_by(seconds + 0.001)

    slow = Slowdown(3.0, time, sleep)

    def work() -> None:
        for _ in range(30):
            time.pass_by(0.002)
            slow.catch_up()

    assert slow.run(work) == pytest.approx(0.18, abs=0.002)
    assert 3 <= len(sleeps) <= 7
