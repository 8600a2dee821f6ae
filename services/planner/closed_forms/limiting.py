"""What limits the rate of a plan: its stages, what they have to spare, and what one instance more would be worth."""

from collections.abc import Iterator
from typing import Final

import msgspec

from common.messages.control import Role
from services.planner.closed_forms.capacity import decode_rps, handed_rps, prefill_rps, rate_rps, whole_rps
from services.planner.plan import Group, Option, Plan, Serving

_ROUNDING: Final = 1e-9


class Stage(msgspec.Struct, frozen=True):
    """All instances of a role."""

    role: Role
    rate_rps: float
    """What they sustain by themselves: P whole prompts; D answers, or whole requests in an aggregated plan."""
    busy: float
    """Share of the use that the limits allow them, 0 to 1, at the rate of the plan."""

    @property
    def limits(self) -> bool:
        """Whether they have nothing to spare."""
        return self.busy > 1 - _ROUNDING


class Worth(msgspec.Struct, frozen=True):
    """The shadow price of an option: what one more of its instances adds to the rate."""

    option: Option
    adds_rps: float


class LimitingFactors(msgspec.Struct, frozen=True):
    """Why a plan does not sustain more."""

    plan: Plan
    stages: tuple[Stage, ...]
    """P, if there are any, then D."""
    worths: tuple[Worth, ...]
    """Of every option of the plan, the most for each device first."""

    def lines(self) -> Iterator[str]:
        """In words, for a person."""
        limiting = " and ".join(stage.role.value for stage in self.stages if stage.limits)
        yield f"{self.plan.rate_rps:.4g} requests/s, limited by {limiting}, always busy"
        for stage in self.stages:
            if not stage.limits:
                yield f"{stage.role.value} could do {stage.rate_rps:.4g} requests/s: {1 - stage.busy:.0%} to spare"
        if self.plan.serving is Serving.CRONUS:
            yield f"prefill computes {self._handed():.0%} of the work on prompts, decode the rest"
        for worth in self.worths:
            option = worth.option
            added = f"{worth.adds_rps:.4g} requests/s" if worth.adds_rps else "nothing"
            yield f"one more {option.role.value} instance with {option.strategy} of {option.pool} adds {added}"

    def _handed(self) -> float:
        return handed_rps(self.plan.serving, self.plan.groups) / self.plan.rate_rps


def limiting_factors(plan: Plan) -> LimitingFactors:
    """What limits `plan`, whose rate must be above 0."""
    worths = [Worth(group.option, _added_rps(plan, group.option)) for group in plan.groups]
    return LimitingFactors(
        plan, tuple(_stages(plan)), tuple(sorted(worths, key=lambda worth: -worth.adds_rps / worth.option.devices))
    )


def _stages(plan: Plan) -> Iterator[Stage]:
    if plan.serving is Serving.AGGREGATED:
        yield Stage(Role.DECODE, whole_rps(plan.groups), 1.0)
        return
    prefill, decode = prefill_rps(plan.groups), decode_rps(plan.groups)
    yield Stage(Role.PREFILL, prefill, handed_rps(plan.serving, plan.groups) / prefill)
    # Under Cronus whatever time answers leave a D, it spends on prompts.
    yield Stage(Role.DECODE, decode, 1.0 if plan.serving is Serving.CRONUS else plan.rate_rps / decode)


def _added_rps(plan: Plan, option: Option) -> float:
    added = rate_rps(plan.serving, (*plan.groups, Group(option, 1))) - plan.rate_rps
    return added if added > _ROUNDING * plan.rate_rps else 0.0
