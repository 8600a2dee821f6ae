"""The solver of mixed-integer linear programmes: HiGHS, as scipy has it, without what it prints."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from services.planner.errors import PlannerError

Vector = NDArray[np.float64]

_OPTIMAL: Final = 0
_INFEASIBLE: Final = 2

_STDOUT: Final = 1


@dataclass(frozen=True)
class LinearProgramme:
    """The least of `cost` · x for 0 <= x <= `upper` with `rows` · x >= `bounds`."""

    cost: Vector
    rows: Vector
    """Constraints × columns."""
    bounds: Vector
    upper: Vector
    integral: Vector
    """Of each column: 1 where only whole numbers do, else 0."""


@dataclass(frozen=True)
class Solution:
    """The best columns found; None where the rows cannot all hold, or where none were found so far."""

    columns: Vector | None
    is_proved: bool = True
    """False where the solver was stopped: others may be better."""


def solve(programme: LinearProgramme, most_nodes: int | None = None) -> Solution:
    """Exact but for the solver's tolerances (1e-6 in every row, column and the cost), unless its tree had `most_nodes`.

    Always the same for the same programme. Raises PlannerError where the solver gives up by itself.
    """
    limit = {} if most_nodes is None else {"node_limit": most_nodes}
    with _silent_stdout():
        result = milp(
            programme.cost,
            integrality=programme.integral,
            bounds=Bounds(0, programme.upper),
            constraints=LinearConstraint(programme.rows, programme.bounds),
            options={"mip_rel_gap": 0, **limit},
        )
    is_proved = result.status in (_OPTIMAL, _INFEASIBLE)
    if not is_proved and most_nodes is None:
        raise PlannerError(f"the search for plans failed: {result.message}")
    return Solution(None if result.x is None else np.asarray(result.x), is_proved)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """What C code prints to standard output goes nowhere: HiGHS 1.12 tells of each repaired solution, come what may.

    All threads' output goes there meanwhile, for some milliseconds.
    """
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    kept = _duplicate(_STDOUT)
    if kept is None:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDOUT)
        yield
    finally:
        libc.fflush(None)
        os.dup2(kept, _STDOUT)
        os.close(kept)
        os.close(nowhere)


def _duplicate(descriptor: int) -> int | None:
    """None where it is closed, as the standard output of some processes is."""
    try:
        return os.dup(descriptor)
    except OSError:
        return None
