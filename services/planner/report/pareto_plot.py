"""The Pareto front as a picture. Needs matplotlib, which is not installed by default."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.planner.errors import PlannerError
from services.planner.plan import Plan
from services.planner.report.plan_words import in_words, price_of
from services.planner.request import Objective, PlanRequest
from services.planner.search.pareto import FrontPoint, Limit
from services.planner.trials.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORDS = {Limit.TTFT: "TTFT P99", Limit.TPOT: "TPOT P99"}


def plot_front(points: Sequence[FrontPoint], plans: Sequence[Evaluation], request: PlanRequest, file: Path) -> None:
    """Draw, for each limit, the best rate or least price over it, and where simulated plans are: a PNG.

    Raises PlannerError for a file that cannot be written.
    """
    figure = front_figure(points, plans, request)
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise PlannerError(f"--plot: {str(file)!r} cannot be written: {error.strerror}") from error


def front_figure(points: Sequence[FrontPoint], plans: Sequence[Evaluation], request: PlanRequest) -> "Figure":
    """The figure that `plot_front` writes."""
    from matplotlib.figure import Figure

    limits = list(dict.fromkeys(point.limit for point in points))
    figure = Figure(figsize=(6.5 * len(limits), 5.2), layout="constrained")
    figure.suptitle(f"{request.model.spec.name}, {request.workload.name}")
    for axes, limit in zip(figure.subplots(1, len(limits), squeeze=False)[0], limits, strict=True):
        _draw_front(axes, [point for point in points if point.limit is limit], request)
        _draw_plans(axes, plans, limit, request)
        _finish(axes, limit, request)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    return figure


def _draw_front(axes: "Axes", points: Sequence[FrontPoint], request: PlanRequest) -> None:
    feasible = [(point.limit_s, _height(point.plan, request)) for point in points if point.plan is not None]
    label = "best plan within the limit, closed form"
    axes.plot([x for x, _ in feasible], [y for _, y in feasible], color="black", marker=".", label=label)
    for point in points:
        if point.plan is None:
            axes.axvline(point.limit_s, color="tab:red", linestyle=":", alpha=0.5)


def _draw_plans(axes: "Axes", plans: Sequence[Evaluation], limit: Limit, request: PlanRequest) -> None:
    """Each simulated plan where its own P99 is, not where its limit is."""
    for rank, each in enumerate(plans, 1):
        if each.shown is None:
            continue
        latency = each.shown.ttft.p99 if limit is Limit.TTFT else each.shown.tpot.p99
        if request.objective is Objective.PRICE:
            height = price_of(each.plan, request) or 0.0
        else:
            height = each.shown_rps or each.rate_rps or 0.0
        words = f"{rank}: {each.plan.serving}, {in_words(each.plan)}, simulated"
        axes.plot([latency], [height], linestyle="", marker="o", label=words)
        axes.annotate(str(rank), (latency, height), textcoords="offset points", xytext=(5, 5))


def _finish(axes: "Axes", limit: Limit, request: PlanRequest) -> None:
    is_price = request.objective is Objective.PRICE
    axes.axvline(getattr(request.limits, limit), color="tab:gray", linestyle="--", label="the requested limit")
    other = next(each for each in Limit if each is not limit)
    kept: float | None = getattr(request.limits, other)
    axes.set(
        title=f"{'least price' if is_price else 'most requests/s'} over the limit of {_WORDS[limit]}",
        xlabel=f"{_WORDS[limit]}, seconds" + ("" if kept is None else f" (limit of {_WORDS[other]}: {kept:g} s)"),
        ylabel="price per hour" if is_price else "requests per second",
        xscale="log",
    )
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    _label(axes)
    axes.grid(alpha=0.3)


def _label(axes: "Axes") -> None:
    """A logarithmic axis with plain numbers; it spans little more than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _height(plan: Plan, request: PlanRequest) -> float:
    return plan.price if request.objective is Objective.PRICE else plan.rate_rps
