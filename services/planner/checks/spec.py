"""The measured steps as the spec-based model has them: nothing fitted, published figures and fixed efficiencies."""

from typing import Final

from services.planner.checks.cases import MeasuredCase, MeasuredStep
from services.planner.checks.held_out import StepTime
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.stages import step_timer
from services.simulator.hardware.strategy import Strategy

_DTYPE: Final = "float16"
"""In which all three tables were measured; the rates of bfloat16 are the same where a device has it."""


def spec_time(case: MeasuredCase, catalogue: Catalogue) -> StepTime | None:
    """The spec-based time of a step of `case`; None where no specification applies to it."""
    if case.spec is None:
        return None
    timer = step_timer(catalogue.device(case.spec.device), case.spec.model, _DTYPE, Strategy(tp=case.tp))

    def seconds(step: MeasuredStep) -> float:
        context = step.context or case.assumed_context * step.sequences
        return timer.step_seconds(
            [(tokens, 0) for tokens in _prompts(step, case.assumed_prompt)], step.sequences, context
        )

    return seconds


def _prompts(step: MeasuredStep, assumed: int | None) -> tuple[int, ...]:
    """As measured; where only their sum is known, prompts of the assumed length and a rest."""
    if assumed is None:
        return step.prompts
    total = sum(step.prompts)
    whole, rest = divmod(total, assumed)
    return (assumed,) * whole + ((rest,) if rest else ())
