"""Runs as a picture. Needs matplotlib, which is not installed by default."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError, PdmeshError
from services.simulator.runs.rows import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


def require_plots() -> None:
    """Raise ConfigError without matplotlib: better before a simulation than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib, which is not installed: pip install -e '.[plots]'") from error


def plot_runs(runs: Sequence[Run], title: str, file: Path) -> None:
    """Draw the distributions of TTFT and TBT, and, where there are several rates, their P99 over the rate: a PNG.

    The distributions are those of the last rate.  Raises PdmeshError for a file that cannot be written.
    """
    figure = figure_of(runs, title)
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise PdmeshError(f"--plot: {str(file)!r} cannot be written: {error.strerror}") from error


def figure_of(runs: Sequence[Run], title: str) -> "Figure":
    """The figure that `plot_runs` writes."""
    from matplotlib.figure import Figure

    rates = sorted({run.rate for run in runs if run.rate is not None})
    last = [run for run in runs if run.rate == runs[-1].rate]
    figure = Figure(figsize=(11, 8.4 if len(rates) > 1 else 4.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2 if len(rates) > 1 else 1, 2, squeeze=False)
    arrivals = last[0].report.arrivals
    _draw_shares(axes[0][0], last, "ttft", f"time to first token, {arrivals}")
    _draw_shares(axes[0][1], last, "tbt", f"time between tokens, {arrivals}")
    if len(rates) > 1:
        _draw_rates(axes[1][0], runs, "ttft", "P99 of the time to first token")
        _draw_rates(axes[1][1], runs, "tbt", "P99 of the time between tokens")
    return figure


def _draw_shares(axes: "Axes", runs: Sequence[Run], quantity: str, title: str) -> None:
    for run in runs:
        curve = run.report.ttft_curve if quantity == "ttft" else run.report.tbt_curve
        axes.step([seconds for seconds, _ in curve], [share for _, share in curve], where="post", label=run.system.name)
    axes.set(title=title, xlabel="seconds", ylabel="share not above", xscale="log", ylim=(0, 1.02))
    _label(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_rates(axes: "Axes", runs: Sequence[Run], quantity: str, title: str) -> None:
    for name in dict.fromkeys(run.system.name for run in runs):
        points = sorted(
            (run.rate, getattr(run.report, quantity).p99)
            for run in runs
            if run.system.name == name and run.rate is not None
        )
        axes.plot([rate for rate, _ in points], [p99 for _, p99 in points], marker="o", label=name)
    axes.set(title=title, xlabel="requests per second", ylabel="seconds")
    if any(getattr(run.report, quantity).p99 > 0 for run in runs):  # answers of one token have no gaps
        axes.set_yscale("log")
        _label(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.legend()


def _label(axis: "Axis") -> None:
    """A logarithmic axis with plain numbers; often it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
