"""SIGTERM and SIGINT as an event, so that a service drains and ends by its own code."""

import asyncio
import signal


class StopSignal(asyncio.Event):
    """Set by the first SIGTERM or SIGINT."""

    was_interrupt = False
    """Whether SIGINT came: a person pressed Ctrl-C."""

    def receive(self, number: int) -> None:
        """A signal has come."""
        self.was_interrupt |= number == signal.SIGINT
        self.set()


def stop_on_signals() -> StopSignal:
    """An event of the running loop that SIGTERM or SIGINT sets. Called once, by a composition root."""
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.receive, number)
    return stop
