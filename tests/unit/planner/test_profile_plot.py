"""The picture of a profile, and what is said where it cannot be drawn."""

import sys
from pathlib import Path

import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.errors import ConfigError
from services.planner.errors import PlannerError
from services.planner.measuring.plot import plot_profile, require_plots
from services.scheduling.profiles.fit import fit_costs
from services.scheduling.profiles.profile import Origin, Profile, Subject
from services.scheduling.profiles.profile_grid import QUICK, GridLimits, grid_steps, point_of

TRUTH = InstanceCosts(PrefillCost(0.03, 0.002), MixedStepCost(0.04, 2e-3, 1e-5, 1e-5), DecodeStepCost(0.05, 4e-3, 1e-5))


def profile() -> Profile:
    steps = grid_steps(GridLimits(8192, 32_768, 16, 16, 256), QUICK)
    seconds = [step.seconds(TRUTH) for step in steps]
    points = tuple(point_of(step, [0.9 * s, s, 1.2 * s]) for step, s in zip(steps, seconds, strict=True))
    costs, fits = fit_costs(points)
    return Profile(Subject("m", "float32"), Origin.MEASURED, "a device", costs, fits, points, slowdown=3.0)


def test_a_png_is_written(tmp_path: Path) -> None:
    require_plots()
    plot_profile(profile(), "d0", tmp_path / "picture.of.it")
    data = (tmp_path / "picture.of.it").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlannerError, match="nowhere"):
        plot_profile(profile(), "d0", tmp_path / "nowhere" / "x.png")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[plots\]'"):
        require_plots()
