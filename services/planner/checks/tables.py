"""How well the planner's two kinds of costs predict what others measured: rows for a report."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean

from services.planner.checks.cases import MeasuredCase, Phase
from services.planner.checks.held_out import Agreement, PhaseCheck, check_case
from services.planner.checks.helix import helix_cases
from services.planner.checks.llm_pilot import llm_pilot_cases
from services.planner.checks.spec import spec_time
from services.planner.checks.splitwise import splitwise_cases
from services.simulator.hardware.catalogue import Catalogue

Row = Mapping[str, str | int | float | bool | None]
"""Flat, as in every report of `pdmesh bench`."""

Reader = Callable[[Path], list[MeasuredCase]]
READERS: tuple[Reader, ...] = (splitwise_cases, helix_cases, llm_pilot_cases)


def measured_rows(data: Path, catalogue: Catalogue) -> list[Row]:
    """A row for each table, model, device, TP and phase, then a mean for each table, device and phase.

    `data` holds the folders splitwise, helix and llm_pilot. Raises ConfigError.
    """
    rows: list[Row] = []
    by_device: dict[tuple[str, str, Phase], list[PhaseCheck]] = defaultdict(list)
    for case in (case for read in READERS for case in read(data)):
        for check in check_case(case, spec_time(case, catalogue)):
            rows.append(_row(case, check))
            by_device[case.table, case.device, check.phase].append(check)
    return [*rows, *(_mean_row(*key, checks) for key, checks in by_device.items())]


def _row(case: MeasuredCase, check: PhaseCheck) -> Row:
    return {
        "kind": "measured_case",
        "where": "simulated",
        "repeats": 1,
        "table": case.table,
        "model": case.model,
        "device": case.device,
        "tp": case.tp,
        "phase": check.phase.value,
        "steps_profiled": check.profiled,
        "steps_predicted": check.predicted,
        **_agreement("fit", check.fit),
        **_agreement("spec", check.spec),
        "rounding_error": check.rounding,
        "assumed": "; ".join(_assumed(case, check)),
    }


def _agreement(name: str, found: Agreement | None) -> Row:
    if found is None:
        return {f"{name}_error": None, f"{name}_worst_error": None, f"{name}_over_measured": None}
    return {
        f"{name}_error": found.mean_error,
        f"{name}_worst_error": found.worst_error,
        f"{name}_over_measured": found.median_ratio,
    }


def _assumed(case: MeasuredCase, check: PhaseCheck) -> Iterator[str]:
    """What the table does not say, and what was done about it."""
    if check.phase is Phase.DECODE and not case.has_contexts:
        yield "fit: no cost of contexts, it is in that of sequences"
        if check.spec:
            yield f"spec: {case.assumed_context} tokens of context each"
    elif check.spec and case.assumed_prompt:
        yield f"spec: prompts of {case.assumed_prompt} tokens"
    if check.fit is None:
        yield "fit: too few steps of the profiled set were measured"


def _mean_row(table: str, device: str, phase: Phase, checks: list[PhaseCheck]) -> Row:
    fits = [check.fit for check in checks if check.fit]
    specs = [check.spec for check in checks if check.spec]
    return {
        "kind": "measured_device",
        "where": "simulated",
        "repeats": 1,
        "table": table,
        "device": device,
        "phase": phase.value,
        "cases": len(checks),
        "fit_error": _mean([fit.mean_error for fit in fits]),
        "spec_cases": len(specs),
        "spec_error": _mean([spec.mean_error for spec in specs]),
        "spec_over_measured": _mean([spec.median_ratio for spec in specs]),
        "rounding_error": _mean([check.rounding for check in checks]),
    }


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None
