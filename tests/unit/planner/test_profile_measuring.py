"""A profile of a running instance: which runs are asked for, in which order, and what is made of the answers."""

import random
from collections import Counter

import msgspec
import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from common.costs.step import Step
from common.ids import Generation, InstanceId
from common.messages.control import Load
from common.messages.device import DeviceFacts
from common.messages.operator import InstanceInfo
from services.planner.errors import Busy
from services.planner.measuring.profiling import Survey, limits_of, measure_points, profile_of, unrest
from services.scheduling.profiles.profile import ProfileError, Subject, decode_profile, encode_profile
from services.scheduling.profiles.profile_grid import FULL, QUICK, grid_steps
from tests.unit.common.bus_fixtures import registration

D0 = InstanceId("d0")
TRUTH = InstanceCosts(
    prefill=PrefillCost(0.03, 0.002),
    mixed=MixedStepCost(0.04, 0.0021, 1.5e-5, 1.2e-5),
    decode=DecodeStepCost(0.05, 0.004, 1.1e-5),
)
INFO = InstanceInfo(
    msgspec.structs.replace(
        registration(Generation(1)),
        kv_capacity_tokens=32_768,
        budget=256,
        device=DeviceFacts("a device", "float32", 2, 3.0),
    ),
    Load(),
)


class Device:
    """Takes the time of TRUTH; while it is disturbed, four times as long. Busy for the first `busy` questions."""

    def __init__(self, disturbed: range = range(0), busy: int = 0) -> None:
        self.runs: list[Step] = []
        self._disturbed = disturbed
        self.busy = busy
        self._random = random.Random(3)

    def measure(self, instance: InstanceId, step: Step, repeats: int) -> tuple[float, ...]:
        assert instance == D0
        if self.busy > 0:
            self.busy -= 1
            raise Busy("it serves a request")
        seconds = []
        for _ in range(repeats):
            slower = 4.0 if len(self.runs) in self._disturbed else self._random.uniform(0.98, 1.02)
            self.runs.append(step)
            seconds.append(step.seconds(TRUTH) * slower)
        return tuple(seconds)


def survey(repeats: int = 5) -> Survey:
    return Survey(D0, grid_steps(limits_of(INFO), QUICK), repeats)


def test_a_profile_says_what_was_measured_and_of_what() -> None:
    plan = Survey(D0, grid_steps(limits_of(INFO), FULL), repeats=3)
    points = measure_points(plan, Device(), lambda step: None, lambda seconds: None)
    profile = profile_of(INFO, points, "2026-01-02T03:04:05+00:00")
    assert profile.subject == Subject("m", "float32")
    assert (profile.device, profile.threads, profile.slowdown) == ("a device", 2, 3.0)
    assert (profile.kv_capacity_tokens, profile.date) == (32_768, "2026-01-02T03:04:05+00:00")
    assert {point.repeats for point in profile.points} == {3}
    assert len(profile.points) == len(plan.steps)
    for step in plan.steps:
        assert step.seconds(profile.costs) == pytest.approx(step.seconds(TRUTH), rel=0.05)
    assert min(fit.r2 for fit in profile.fits.values()) > 0.99
    assert decode_profile(encode_profile(profile), "x") == profile


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_each_step_is_run_as_often_as_asked_and_shown_before_it_is(repeats: int) -> None:
    plan, device, shown = survey(repeats), Device(), []
    measure_points(plan, device, lambda step: shown.append((step, len(device.runs))), lambda seconds: None)
    assert Counter(device.runs) == dict.fromkeys(plan.steps, repeats)
    assert len(shown) == plan.num_visits()
    assert shown[0] == (plan.steps[0], 0)
    assert shown[-1][1] < len(device.runs)


def test_a_disturbance_of_a_while_is_forgotten_by_the_medians() -> None:
    """A fifth of the measurement, in one piece: with all runs of a step in a row, some steps would be all wrong."""
    plan = survey(5)
    runs = 5 * len(plan.steps)
    device = Device(disturbed=range(runs // 3, runs // 3 + runs // 5))
    points = measure_points(plan, device, lambda step: None, lambda seconds: None)
    assert max(point.seconds_max / point.seconds for point in points) > 3
    for point in points:
        true = Step(point.shape, point.is_prefill).seconds(TRUTH)
        assert point.seconds == pytest.approx(true, rel=0.03)


def test_unrest_is_of_most_steps_and_not_of_the_worst() -> None:
    plan = survey(4)
    quiet = measure_points(plan, Device(disturbed=range(8)), lambda step: None, lambda seconds: None)
    assert 1.0 <= unrest(quiet) < 1.1
    half = Device(disturbed=range(2 * len(plan.steps)))
    assert unrest(measure_points(plan, half, lambda step: None, lambda seconds: None)) > 3


def test_it_waits_for_a_busy_instance_but_not_for_ever() -> None:
    pauses: list[float] = []
    device = Device(busy=3)
    measure_points(survey(1), device, lambda step: None, pauses.append)
    assert len(pauses) == 3
    with pytest.raises(Busy, match="it serves a request"):
        measure_points(survey(1), Device(busy=10_000), lambda step: None, pauses.append)
    assert 10 < sum(pauses) < 120


def test_points_that_do_not_suffice_are_no_profile() -> None:
    plan = Survey(D0, (Step(StepShape(8), True), Step(StepShape(decodes=1))), 2)
    points = measure_points(plan, Device(), lambda step: None, lambda seconds: None)
    with pytest.raises(ProfileError, match="the prefill model has 1 points"):
        profile_of(INFO, points, "")
