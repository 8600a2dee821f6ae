"""What a plan file must satisfy beyond the types of its keys."""

import re
from collections import Counter
from collections.abc import Iterator

from msgspec import UNSET

from common.config.sizes import parse_size
from common.errors import ConfigError
from services.planner.files.lognormal import length_problems
from services.planner.files.plan_keys import LimitKeys, MachineKeys, PlanKeys, Sizes, WorkloadKeys
from services.planner.request import Objective, Pool
from services.simulator.cluster.keys import AssumedKeys
from services.simulator.cluster.rules import known
from services.simulator.hardware.catalogue import Catalogue

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICES = ("cpu", "cuda", "rocm")


def problems(keys: PlanKeys) -> Iterator[str]:
    """A sentence for everything that keeps the file from being used: key, value, what is allowed, what to do."""
    for index, machine in enumerate(keys.machines):
        yield from _of_machine(f"machines[{index}]", machine)
    for name, count in Counter(machine.name for machine in keys.machines).items():
        if count > 1:
            yield f"machines: the name {name!r} is given {count} times; each pool needs its own"
    yield from _of_workload(keys.workload)
    yield from _of_objective(keys)


def price_problems(keys: PlanKeys, catalogue: Catalogue) -> Iterator[str]:
    """What is wrong with the name of the price list."""
    lists = sorted({name for device in catalogue.devices for name in device.prices})
    if keys.prices is not None and keys.prices not in lists:
        yield f"prices: no price list {keys.prices!r}; {known(keys.prices, lists)}"


def unpriced_problems(keys: PlanKeys, pools: tuple[Pool, ...]) -> Iterator[str]:
    """Which prices are missing, where plans are compared by price."""
    if keys.objective is not Objective.PRICE and keys.budget is None:
        return
    wanted = "objective price" if keys.objective is Objective.PRICE else f"a budget of {keys.budget:g}"
    for index, pool in enumerate(pools):
        if pool.device_price is None:
            of_list = f", for the list {keys.prices!r} has none of {pool.device}" if keys.prices else ""
            yield (
                f"machines[{index}] ({pool.name}) has no price, and {wanted} needs one of every machine{of_list}; "
                "write `price:`, per machine and hour, or name another list with `prices:`"
            )


def _of_machine(path: str, machine: MachineKeys) -> Iterator[str]:
    if not _NAME.fullmatch(machine.name):
        yield f"{path}.name is {machine.name!r}; write letters, digits and ._-, for ids of instances begin with it"
    if machine.device is None and not machine.profiles:
        yield (
            f"{path} ({machine.name}) has neither a device nor profiles: give a name of the catalogue, or files of "
            "`pdmesh profile`"
        )
    if machine.device is None and (machine.assume != AssumedKeys() or machine.utilisation is not None):
        yield f"{path}: assume and utilisation are about a catalogue device; drop them, or give a device"
    device = machine.instance.device
    if device is not UNSET and device not in _DEVICES:
        yield (
            f"{path}.instance.device is {device!r}; write {' or '.join(_DEVICES)}, without a number: each instance "
            "gets devices of its machine"
        )
    yield from _of_sizes(path, machine)


def _of_sizes(path: str, machine: MachineKeys) -> Iterator[str]:
    for key in Sizes.__struct_fields__:
        outside, inside = machine.given(key)
        if outside is not UNSET and inside is not UNSET and outside != inside:
            yield f"{path}.{key} is {outside!r}, and {path}.instance.{key} is {inside!r}; keep one"
    sizes = machine.sizes()
    rooms = {"kv_memory": sizes.kv_memory, "kv_tokens": machine.kv_tokens, "utilisation": machine.utilisation}
    given = [key for key, value in rooms.items() if value is not None]
    if len(given) > 1:
        yield f"{path}: {' and '.join(given)} all say how much KV it holds; keep one"
    if sizes.budget < sizes.max_batch:
        yield (
            f"{path}.budget is {sizes.budget!r} tokens per step with max_batch {sizes.max_batch!r}: each decode takes "
            "one token, so the budget must be at least max_batch; raise budget or lower max_batch"
        )
    if sizes.kv_memory is not None:
        try:
            parse_size(sizes.kv_memory)
        except ConfigError as error:
            yield f"{path}.kv_memory: {error}"


def _of_workload(workload: WorkloadKeys) -> Iterator[str]:
    by_figures = [workload.prompt, workload.output]
    if workload.trace is not None and any(by_figures):
        yield "workload has both a trace and lengths in figures; drop `trace`, or `prompt` and `output`"
    elif workload.trace is None and not all(by_figures):
        yield (
            "workload needs a `trace` (such as synthetic:azure_conv), or both `prompt` and `output` "
            "(such as {mean: 1000, p99: 4000})"
        )
    for name, lengths in (("prompt", workload.prompt), ("output", workload.output)):
        if lengths is not None:
            yield from length_problems(f"workload.{name}", lengths)


def _of_objective(keys: PlanKeys) -> Iterator[str]:
    if keys.objective is Objective.GOODPUT and keys.limits == LimitKeys():
        yield (
            "objective goodput counts requests within limits, and there are none; write `limits:` with ttft_p99_s or "
            "tpot_p99_s, or take objective throughput"
        )
