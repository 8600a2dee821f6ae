"""The workload that a person names on a command line."""

from pathlib import Path

import msgspec

from services.simulator.workload.errors import TraceError, WorkloadError
from services.simulator.workload.known import KNOWN_TRACES, read_known
from services.simulator.workload.readers import read_trace
from services.simulator.workload.requests import Workload, first, scaled
from services.simulator.workload.shapes import AZURE_CONV, SHAPES, shape_named
from services.simulator.workload.synthetic import synthetic

SYNTHETIC = "synthetic"
DEFAULT_REQUESTS = 1000


class WorkloadChoice(msgspec.Struct, frozen=True):
    """What was asked for."""

    trace: str
    """`synthetic` or `synthetic:SHAPE`, the path of a trace, or the name of a public one in `data`."""
    requests: int | None = None
    """The first so many; None: all of a trace, DEFAULT_REQUESTS of a synthetic workload."""
    seed: int = 0
    divide: int = 1
    """Every length is divided by this."""
    data: Path | None = None
    """A user's folder of public traces."""


def choose_workload(choice: WorkloadChoice) -> Workload:
    """The lengths, with arrivals where the trace has them. Raises WorkloadError, which names file and line."""
    return scaled(_lengths(choice), choice.divide)


def _lengths(choice: WorkloadChoice) -> Workload:
    kind, _, shape = choice.trace.partition(":")
    if kind == SYNTHETIC:
        requests = DEFAULT_REQUESTS if choice.requests is None else choice.requests
        return synthetic(requests, choice.seed, shape_named(shape) if shape else AZURE_CONV)
    workload = _read(choice.trace, choice.data)
    return workload if choice.requests is None else first(workload, choice.requests)


def _read(trace: str, data: Path | None) -> Workload:
    if Path(trace).is_file():
        return read_trace(Path(trace))
    if trace not in KNOWN_TRACES:
        shapes = ", ".join([SYNTHETIC, *(f"{SYNTHETIC}:{shape}" for shape in SHAPES)])
        raise TraceError(
            f"no trace {trace!r}: there is no such file, built in are {shapes}, and a folder of public traces may have "
            f"{', '.join(KNOWN_TRACES)}"
        )
    if data is None:
        raise WorkloadError(f"{trace!r} is a public trace: give the folder that holds it with --data, or PDMESH_DATA")
    return read_known(data, trace)
