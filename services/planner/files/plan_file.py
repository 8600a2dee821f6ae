"""A plan file: read, checked, and turned into a request that can be planned for."""

from collections.abc import Iterable
from pathlib import Path

from common.config.sources import read_file
from common.config.typed import typed
from common.errors import ConfigError, PdmeshError
from services.planner.files.lognormal import lognormal_workload
from services.planner.files.plan_keys import LimitKeys, PlanKeys, WorkloadKeys
from services.planner.files.plan_rules import price_problems, problems, unpriced_problems
from services.planner.files.pools import Setting, pool_of
from services.planner.request import Limits, Objective, PlanRequest, Pool
from services.simulator.cluster.keys import ClusterKeys
from services.simulator.cluster.served_model import ServedModel, served_model
from services.simulator.hardware.catalogue import Catalogue, load_catalogue, with_own
from services.simulator.workload.requests import Workload, scaled
from services.simulator.workload_choice import DEFAULT_REQUESTS, WorkloadChoice, choose_workload


def load_plan_file(path: Path, catalogue: Catalogue | None = None, data: Path | None = None) -> PlanRequest:
    """Read a plan file; `catalogue` None: the package's own devices. `data`: a user's folder of public traces.

    Paths in the file are taken from its folder.  Raises ConfigError with every problem found, one a line: of the keys
    themselves, or where these are sound of what they name.
    """
    keys = typed(read_file(path), PlanKeys, str(path))
    if found := list(problems(keys)):
        raise _problems(path, found)
    catalogue = catalogue or load_catalogue()
    if keys.devices is not None:
        try:
            catalogue = with_own(catalogue, path.parent / keys.devices)
        except ConfigError as error:
            raise _problems(path, [f"devices: {error}"]) from error
    workload, model = _workload(keys.workload, path, data), _model(keys, path)
    longest = max(request.prompt_tokens + request.output_tokens for request in workload.requests)
    pools = _pools(keys, path, Setting(model, catalogue, path.parent, keys.prices, longest))
    return PlanRequest(
        pools=pools,
        model=model,
        model_word=keys.mesh_model or keys.model,
        workload=workload,
        rate_rps=keys.rate,
        limits=Limits(keys.limits.ttft_p99_s, keys.limits.tpot_p99_s),
        objective=keys.objective or (Objective.THROUGHPUT if keys.limits == LimitKeys() else Objective.GOODPUT),
        budget=keys.budget,
    )


def _pools(keys: PlanKeys, path: Path, setting: Setting) -> tuple[Pool, ...]:
    found = list(price_problems(keys, setting.catalogue))
    pools: list[Pool] = []
    for index, machine in enumerate(keys.machines):
        try:
            pools.append(pool_of(machine, setting))
        except PdmeshError as error:
            found.append(f"machines[{index}] ({machine.name}): {error}")
    if not found:
        found += unpriced_problems(keys, tuple(pools))
    if found:
        raise _problems(path, found)
    return tuple(pools)


def _model(keys: PlanKeys, path: Path) -> ServedModel:
    # What a cluster file says of its model.
    return served_model(
        ClusterKeys(model=keys.model, instances=(), fingerprint=keys.fingerprint, dtype=keys.dtype), path
    )


def _workload(keys: WorkloadKeys, path: Path, data: Path | None) -> Workload:
    try:
        if keys.prompt is not None and keys.output is not None:
            requests = keys.requests or DEFAULT_REQUESTS
            return scaled(lognormal_workload(keys.prompt, keys.output, requests, keys.seed), keys.divide)
        assert keys.trace is not None
        beside = path.parent / keys.trace
        trace = str(beside) if beside.is_file() else keys.trace
        return choose_workload(WorkloadChoice(trace, keys.requests, keys.seed, keys.divide, data))
    except PdmeshError as error:
        raise _problems(path, [f"workload: {error}"]) from error


def _problems(path: Path, found: Iterable[str]) -> ConfigError:
    return ConfigError("\n".join(f"{path}: {problem}" for problem in found))
