import asyncio
import os
import signal

import pytest

from common.signals import stop_on_signals


@pytest.mark.parametrize(("number", "is_interrupt"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
async def test_signals_set_the_event_and_say_which_it_was(number: signal.Signals, is_interrupt: bool) -> None:
    stop = stop_on_signals()
    try:
        os.kill(os.getpid(), number)
        async with asyncio.timeout(5):
            await stop.wait()
        assert stop.was_interrupt is is_interrupt
    finally:
        for handled in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(handled)
