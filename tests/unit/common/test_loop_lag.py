"""How late an event loop is."""

import asyncio
import time

from common.clock import ManualClock, SystemClock
from common.loop_lag import LoopLag, LoopLagFigures, figures_of


def test_the_99th_of_a_hundred_and_the_largest() -> None:
    assert figures_of([]) == LoopLagFigures(0.0, 0.0)
    assert figures_of([0.5]) == LoopLagFigures(0.5, 0.5)
    assert figures_of([*range(100), 1000]) == LoopLagFigures(99, 1000)
    assert figures_of([0.0] * 99 + [7.0]) == LoopLagFigures(0.0, 7.0)


async def test_a_loop_that_is_held_up_is_late() -> None:
    lag = LoopLag(SystemClock(), interval_s=0.001)
    lag.start()
    await asyncio.sleep(0.01)
    time.sleep(0.05)  # noqa: ASYNC251 - to hold up the loop is the point
    await asyncio.sleep(0.01)
    assert lag.figures().max_s > 0.04


async def test_only_the_last_wake_ups_count() -> None:
    clock = ManualClock()
    lag = LoopLag(clock, interval_s=0.001, kept=2)
    lag.start()
    clock.advance(5.0)
    while lag.figures().max_s < 4.0:  # noqa: ASYNC110 - a timer that sets no event
        await asyncio.sleep(0.001)
    while lag.figures().max_s > 0.0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    # The clock stands still: every wake-up is early by the whole interval, which is no lag.
    assert lag.figures() == LoopLagFigures(0.0, 0.0)


async def test_nothing_is_seen_after_stop() -> None:
    clock = ManualClock()
    lag = LoopLag(clock, interval_s=0.001)
    lag.start()
    lag.stop()
    lag.stop()
    clock.advance(1.0)
    await asyncio.sleep(0.02)
    assert lag.figures() == LoopLagFigures()
