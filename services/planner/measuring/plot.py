"""A profile as a picture: measured against fitted. Needs matplotlib, which is not installed by default."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.costs.step import Step
from common.errors import ConfigError
from services.planner.errors import PlannerError
from services.scheduling.profiles.profile import Point, Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def require_plots() -> None:
    """Raise ConfigError without matplotlib: better before a measurement than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib, which is not installed: pip install -e '.[plots]'") from error


def plot_profile(profile: Profile, title: str, file: Path) -> None:
    """Draw every point of `profile` beside its fitted models, as a PNG. Raises PlannerError for an unusable file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    emulated = f", emulated: {profile.slowdown:g} × slower" if profile.slowdown > 1 else ""
    threads = f", threads: {profile.threads}" if profile.threads is not None else ""
    figure.suptitle(f"{title}: {profile.device}, {profile.subject.dtype}{threads}{emulated}")
    prompts, mixed, decodes = figure.subplots(1, 3)
    _draw_prompts(prompts, profile)
    _draw_agreement(mixed, profile, "mixed", [p for p in profile.points if not p.is_prefill and p.shape.chunk_tokens])
    _draw_agreement(decodes, profile, "decode", [p for p in profile.points if not p.shape.chunk_tokens])
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise PlannerError(f"--plot: {str(file)!r} cannot be written: {error}") from error


def _draw_prompts(axes: "Axes", profile: Profile) -> None:
    """T_pre over the length of the prompt."""
    points = [point for point in profile.points if point.is_prefill]
    tokens = [point.shape.chunk_tokens for point in points]
    axes.errorbar(tokens, [p.seconds for p in points], _spread(points), fmt="o", capsize=3, label="measured")
    axes.plot(tokens, [profile.costs.prefill.seconds(count) for count in tokens], label="fitted")
    axes.set(title=_title(profile, "prefill"), xlabel="prompt tokens", ylabel="seconds")
    axes.legend()


def _draw_agreement(axes: "Axes", profile: Profile, model: str, points: Sequence[Point]) -> None:
    """Measured over fitted seconds; on the diagonal they agree."""
    fitted = [Step(point.shape, point.is_prefill).seconds(profile.costs) for point in points]
    axes.errorbar(fitted, [p.seconds for p in points], _spread(points), fmt="o", capsize=3)
    ends = [min(fitted), max(fitted)]
    axes.plot(ends, ends, label="measured = fitted")
    axes.set(
        title=_title(profile, model), xlabel="fitted seconds", ylabel="measured seconds", xscale="log", yscale="log"
    )
    axes.legend()


def _spread(points: Sequence[Point]) -> list[list[float]]:
    below = [point.seconds - point.seconds_min for point in points]
    above = [point.seconds_max - point.seconds for point in points]
    return [below, above]


def _title(profile: Profile, model: str) -> str:
    fit = profile.fits[model]
    return f"{model}: R² {fit.r2:.4f}, worst {fit.worst_relative_residual:.0%}"
