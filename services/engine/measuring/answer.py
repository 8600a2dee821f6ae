"""The answer of an instance to the gateway's MeasureStep, whatever its role."""

from common.costs.step import Step
from common.ids import Generation, InstanceId
from common.messages.control import MeasureStep, StepMeasured
from services.engine.measuring.measure import MeasurementRefused
from services.engine.thread import EngineThread


async def answer_measure(
    order: MeasureStep, engine: EngineThread, instance: InstanceId, generation: Generation
) -> StepMeasured:
    """Measure what `order` says on `engine`. Raises nothing but what broke the engine."""
    try:
        seconds = await engine.measure(Step(order.shape, order.is_prefill), order.repeats)
    except MeasurementRefused as error:
        return StepMeasured(instance, generation, order.measure, (), str(error))
    return StepMeasured(instance, generation, order.measure, seconds)
