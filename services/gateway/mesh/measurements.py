"""Measurements of steps that an operator asked for: sent to an instance, and waited for."""

import asyncio
import itertools
from collections.abc import Callable

from common.costs.step import Step
from common.ids import InstanceId, MeasureId
from common.messages.control import MeasureStep, StepMeasured, ToWorker


class Measurements:
    """Asks instances by `send` and hands each answer to who waits for it. Everything runs on the event loop."""

    def __init__(self, send: Callable[[InstanceId, ToWorker], None]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._pending: dict[MeasureId, tuple[InstanceId, asyncio.Future[StepMeasured | None]]] = {}

    async def measure(self, instance: InstanceId, step: Step, repeats: int) -> StepMeasured | None:
        """The answer of `instance`; None where it was lost meanwhile. Cancel-safe."""
        measure = MeasureId(f"m-{next(self._numbers)}")
        answer: asyncio.Future[StepMeasured | None] = asyncio.get_running_loop().create_future()
        self._pending[measure] = instance, answer
        try:
            self._send(instance, MeasureStep(measure, step.shape, step.is_prefill, repeats))
            return await answer
        finally:
            del self._pending[measure]

    def measured(self, message: StepMeasured) -> None:
        """An instance has answered, perhaps one that nobody waits for any more."""
        waiter = self._pending.get(message.measure)
        if waiter is not None and waiter[0] == message.instance and not waiter[1].done():
            waiter[1].set_result(message)

    def close(self) -> None:
        """Nobody answers any more."""
        for _, answer in self._pending.values():
            if not answer.done():
                answer.set_result(None)

    def lost(self, instance: InstanceId) -> None:
        """This life of `instance` is over and answers nothing any more."""
        for asked, answer in self._pending.values():
            if asked == instance and not answer.done():
                answer.set_result(None)
