"""What meshes did on this machine, beside what the simulator says of the very same mesh.yaml."""

from collections.abc import Mapping, Sequence

import msgspec

from common.config.types import MeshConfig
from services.bench.policies.mesh_runs import MeshServed, NamedMesh
from services.bench.policies.mesh_system import ModelFacts, mesh_system, read_profiles
from services.bench.policies.real_rows import COLUMNS, MEANS, predictions
from services.bench.report import Row, Where
from services.simulator.runs.report import Report
from services.simulator.runs.system import serve
from services.simulator.workload.requests import Workload


class Unpredicted(msgspec.Struct, frozen=True):
    """Why the simulator says nothing of a mesh."""

    reason: str


Prediction = Report | Unpredicted


class MeshLoad(msgspec.Struct, frozen=True):
    """What the rows of one run have in common."""

    name: str
    """all_at_once, rate or recorded."""
    rate_rps: float | None
    workload: Workload


def predict_mesh(mesh: NamedMesh, workload: Workload, model: ModelFacts) -> Prediction:
    """What the simulator says of a mesh from the profiles of its instances.

    Raises ProfileError for a profile that cannot be used, and SimulationError for requests that it cannot serve.
    """
    profiles = read_profiles(mesh.config)
    missing = [instance.id for instance in mesh.config.instances if instance.id not in profiles]
    if missing:
        return Unpredicted(f"{', '.join(missing)}: no profile")
    return serve(mesh_system(mesh.config, mesh.name, profiles, model), workload)


def mesh_rows(served: Sequence[MeshServed], predicted: Mapping[str, Prediction], load: MeshLoad) -> list[Row]:
    """A row for each mesh: medians over the rounds, and predicted_* beside them. `predicted` is by name."""
    reference = served[0].texts
    return [_row(item, predicted[item.mesh.name], load, reference) for item in served]


def mesh_summary(served: Sequence[MeshServed], rows: Sequence[Row]) -> dict[str, float]:
    """The first mesh's throughput over that of the best of the others, and the mean errors of the predictions.

    The ratio is the median of the rounds' ratios to each of the others, the least of these.
    """
    summary: dict[str, float] = {}
    first, others = served[0], served[1:]
    if others:
        mine = first.measured("throughput_rps")
        ratios = [mine.over(other.measured("throughput_rps")).median for other in others]
        summary["first_over_best_other"] = min(ratios)
    guessed = [_number(row, "predicted_throughput_rps") for row in rows if row["predicted_throughput_rps"] is not None]
    if others and len(guessed) == len(rows):
        summary["predicted_first_over_best_other"] = guessed[0] / max(guessed[1:])
    errors = {column: error for column in COLUMNS if (error := _mean_error(rows, column)) is not None}
    summary |= {f"prediction_error_{column}": error for column, error in errors.items()}
    if means := [errors[column] for column in MEANS if column in errors]:
        summary["prediction_error_of_means"] = sum(means) / len(means)
    return summary


def _row(item: MeshServed, prediction: Prediction, load: MeshLoad, reference: Sequence[str]) -> Row:
    config = item.mesh.config
    guesses = predictions(prediction) if isinstance(prediction, Report) else dict.fromkeys(COLUMNS)
    columns: dict[str, float | None] = {}
    for column in COLUMNS:
        columns |= item.measured(column).columns(column)
        columns[f"predicted_{column}"] = guesses[column]
    same = sum(mine == other for mine, other in zip(item.texts, reference, strict=True))
    return {
        "kind": "mesh",
        "where": Where.EMULATED if _is_emulated(config) else Where.REAL,
        "repeats": len(item.figures),
        "mesh": item.mesh.name,
        "model": config.model,
        "dtype": config.dtype,
        "policy": config.policy,
        "split": str(config.split) if config.policy == "fixed" else None,
        "instances": ", ".join(_words(config)),
        "workload": load.workload.name,
        "load": load.name,
        "rate_rps": load.rate_rps,
        "requests": len(load.workload.requests),
        "same_answers": same / len(reference),
        "unpredicted": prediction.reason if isinstance(prediction, Unpredicted) else None,
        **columns,
    }


def _is_emulated(config: MeshConfig) -> bool:
    return any(instance.emulate.slowdown > 1.0 for instance in config.instances)


def _words(config: MeshConfig) -> list[str]:
    """Of each instance what sets it apart."""
    return [
        f"{instance.id} {instance.role}"
        + (f" {instance.emulate.slowdown:g} x slower" if instance.emulate.slowdown > 1.0 else "")
        for instance in config.instances
    ]


def _mean_error(rows: Sequence[Row], column: str) -> float | None:
    """|predicted / measured - 1|, a mean over the rows that have both; None without any."""
    errors = [
        abs(_number(row, f"predicted_{column}") / _number(row, column) - 1.0)
        for row in rows
        if row[f"predicted_{column}"] is not None and _number(row, column) > 0
    ]
    return sum(errors) / len(errors) if errors else None


def _number(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, int | float)
    return float(value)
