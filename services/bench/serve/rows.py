"""What was measured as rows, and the ratios that goals are set for (pure)."""

from collections.abc import Mapping, Sequence
from typing import Final

from services.bench.repeats import Measured
from services.bench.report import Row, Value, Where
from services.bench.serve.parts import BEFORE_FIRST_TOKEN
from services.bench.serve.settings import FULL, HALF, NONE, SPLITS, D, P, ServeSettings, SplitCase
from services.bench.serve.trials import Part, Trial

Served = Mapping[Trial, Sequence[Mapping[str, float]]]
"""For each trial its figures by column, a mapping for each round."""

_PHASES: Final = {
    Part.MESH: "end_to_end",
    Part.LONE: "end_to_end",
    Part.PREFILL: "prefill",
    Part.DECODE: "decode",
    Part.TOGETHER: "end_to_end",
    Part.ENGINE: "end_to_end",
}
_STAGES: Final = {FULL: (Part.PREFILL, Part.DECODE), HALF: (Part.PREFILL, Part.DECODE), NONE: (Part.DECODE,)}
"""What a mesh with this split consists of."""
_SUFFIXES: Final = {FULL: "", HALF: "_half", NONE: "_none"}
_LOOPS: Final = ("gateway", P, D)


def serve_rows(settings: ServeSettings, served: Served) -> list[Row]:
    """A row for each trial, one for each hand-off compared with aggregated serving, and the lag of event loops."""
    rows = [_row(settings, trial, served) for trial in served]
    rows += [_handoff_row(settings, split, served) for split in (FULL, HALF)]
    return rows + [row for split in SPLITS for row in _lag_rows(settings, split, served)]


def serve_summary(served: Served) -> dict[str, float]:
    """Medians over the rounds, without a suffix for the full split."""
    summary: dict[str, float] = {}
    for split, suffix in _SUFFIXES.items():
        summary[f"mesh_over_stage{suffix}"] = _over_stage(split, served).median
        summary[f"mesh_over_engine{suffix}"] = _over_engine(split, served).median
    for split in (FULL, HALF):
        suffix = _SUFFIXES[split]
        mesh, together = (_rate(Trial(part, split), served) for part in (Part.MESH, Part.TOGETHER))
        summary[f"mesh_over_stages_together{suffix}"] = mesh.over(together).median
        cost, share = _handoff(split, served)
        summary[f"handoff_ttft_ms{suffix}"] = cost.median
        summary[f"handoff_ttft_percent{suffix}"] = share.median
    return summary


def _row(settings: ServeSettings, trial: Trial, served: Served) -> Row:
    rounds = served[trial]
    row: dict[str, Value] = {"kind": "serve", **_common(settings, trial.split, len(rounds))}
    row |= {
        "part": trial.part.value,
        "phase": _PHASES[trial.part],
        "threads": 2 if trial.part is Part.ENGINE else 1,
        "cores": 1 if trial.part in (Part.PREFILL, Part.DECODE) else 2,
        "clients": 1 if trial.part is Part.LONE else settings.clients,
        "requests": settings.lone_requests if trial.part is Part.LONE else settings.requests,
    }
    for column in rounds[0]:
        if "_lag_" not in column:
            row |= _measured(trial, column, served).columns(column)
    if trial.part is not Part.LONE:
        tokens = _tokens_of_request(settings, trial)
        row |= Measured.of(tokens * rate for rate in _rate(trial, served).values).columns("tokens_per_s")
    if trial.part is Part.MESH:
        row |= _over_stage(trial.split, served).columns("mesh_over_stage")
        row |= _over_engine(trial.split, served).columns("mesh_over_engine")
        row |= {"slo_ttft_s": settings.slo_ttft_s, "slo_tpot_s": settings.slo_tpot_s}
    return row


def _handoff_row(settings: ServeSettings, split: SplitCase, served: Served) -> Row:
    cost, share = _handoff(split, served)
    return {
        "kind": "handoff",
        **_common(settings, split, len(cost.values)),
        "clients": 1,
        "requests": settings.lone_requests,
        **_measured(Trial(Part.LONE, split), "ttft_p50_s", served).columns("ttft_p50_s"),
        **_measured(Trial(Part.LONE, NONE), "ttft_p50_s", served).columns("aggregated_ttft_p50_s"),
        **cost.columns("handoff_ttft_ms"),
        **share.columns("handoff_ttft_percent"),
        **{
            f"{whose}{stage.value}_p50_ms": _measured(Trial(Part.LONE, of), f"{stage.value}_p50_ms", served).median
            for whose, of in (("", split), ("aggregated_", NONE))
            for stage in BEFORE_FIRST_TOKEN
        },
    }


def _lag_rows(settings: ServeSettings, split: SplitCase, served: Served) -> list[Row]:
    """Of the processes that tell it."""
    trial = Trial(Part.MESH, split)
    return [
        {
            "kind": "loop_lag",
            **_common(settings, split, len(served[trial])),
            "process": name,
            **_measured(trial, f"{name}_lag_p99_ms", served).columns("lag_p99_ms"),
            **_measured(trial, f"{name}_lag_max_ms", served).columns("lag_max_ms"),
        }
        for name in _LOOPS
        if all(f"{name}_lag_max_ms" in figures for figures in served[trial])
    ]


def _common(settings: ServeSettings, split: SplitCase, rounds: int) -> dict[str, Value]:
    return {
        "where": Where.REAL.value,
        "repeats": rounds,
        "system": "pdmesh",
        "model": settings.model,
        "dtype": settings.dtype,
        "workload": settings.lengths,
        "split": split.name,
        "split_tokens": split.tokens(settings.prompt_tokens),
        "settings": f"batch {settings.max_batch}, budget {settings.budget}",
    }


def _tokens_of_request(settings: ServeSettings, trial: Trial) -> int:
    """Prompt tokens that are computed where that is all; generated ones elsewhere."""
    if trial.part is Part.PREFILL:
        return trial.split.tokens(settings.prompt_tokens)
    return settings.output_tokens


def _over_stage(split: SplitCase, served: Served) -> Measured:
    """Requests per second of the mesh over those of the slower of its stages alone, in each round."""
    rates = [_rate(Trial(part, split), served).values for part in _STAGES[split]]
    slowest = Measured.of(min(of_round) for of_round in zip(*rates, strict=True))
    return _rate(Trial(Part.MESH, split), served).over(slowest)


def _over_engine(split: SplitCase, served: Served) -> Measured:
    return _rate(Trial(Part.MESH, split), served).over(_rate(Trial(Part.ENGINE, NONE), served))


def _handoff(split: SplitCase, served: Served) -> tuple[Measured, Measured]:
    """What splitting adds to the time of the first token of one request at a time: milliseconds, and percent."""
    split_s = _measured(Trial(Part.LONE, split), "ttft_p50_s", served)
    whole_s = _measured(Trial(Part.LONE, NONE), "ttft_p50_s", served)
    cost = Measured.of(1e3 * (mine - its) for mine, its in zip(split_s.values, whole_s.values, strict=True))
    return cost, Measured.of(100.0 * (ratio - 1.0) for ratio in split_s.over(whole_s).values)


def _rate(trial: Trial, served: Served) -> Measured:
    return _measured(trial, "requests_per_s", served)


def _measured(trial: Trial, column: str, served: Served) -> Measured:
    return Measured.of(figures[column] for figures in served[trial])
