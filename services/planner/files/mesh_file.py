"""A plan as a mesh.yaml that `pdmesh up` runs as it is."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import yaml

from common.config.load import check_mesh
from common.config.sizes import parse_size
from common.config.types import GatewayConfig, InstanceConfig, MeshConfig
from services.planner.plan import Plan
from services.planner.request import PlanRequest, Pool
from services.planner.trials.deployment import POLICY, prefill_slots
from services.planner.trials.packing import Seat, seats
from services.simulator.cluster.served_model import ServedModel

_CPU = "cpu"
_KEYS = "keys"
"""Where `pdmesh keys init` puts keys, without which instances on several machines may not join."""
_ALWAYS = {MeshConfig: {"model", "dtype", "policy"}, InstanceConfig: {"id", "role", "device"}}
"""Keys that are written even where they are the default."""


def mesh_of(plan: Plan, request: PlanRequest) -> MeshConfig:
    """The mesh of `plan`: an instance for each of its own, the gateway and the transfer layer by default.

    `host` is POOL-N, the N-th machine of a pool, from 0.  It is null where there is one machine in all, and where every
    machine is a CPU: that is this one, on which several pools emulate several devices.  GPUs are numbered within their
    machine; an instance that spans several has the number of the first.  Raises ConfigError for a mesh that could not
    be loaded, PlannerError where machines cannot seat the instances.  A plan that needs ranks is made as well, though
    `pdmesh up` refuses it.
    """
    taken = seats(plan, request.pools)
    is_local = _are_this_machine(request.pools)
    config = MeshConfig(
        model=request.model_word,
        dtype=request.model.dtype,
        policy=POLICY[plan.serving],
        gateway=GatewayConfig(prefill_slots=prefill_slots(plan), control_keys=None if is_local else _KEYS),
        instances=tuple(_instance(seat, request.model, is_local=is_local) for seat in taken),
    )
    return config if plan.needs_ranks else check_mesh(config)


def mesh_text(config: MeshConfig, comments: Iterable[str]) -> str:
    """`config` as YAML: each instance on a line, without what is the default, under `comments`."""
    head = "".join(f"# {line}\n" if line else "#\n" for line in comments)
    plain = _changed(config)
    instances = plain.pop("instances")
    lines = (yaml.safe_dump(each, default_flow_style=True, sort_keys=False, width=10_000) for each in instances)
    body = yaml.safe_dump(plain, sort_keys=False) + "instances:\n" + "".join(f"  - {line}" for line in lines)
    return head + body


def hosts_of(config: MeshConfig) -> Sequence[str]:
    """The machines that `config` names, in order."""
    return tuple(dict.fromkeys(instance.host for instance in config.instances if instance.host is not None))


def _are_this_machine(pools: Sequence[Pool]) -> bool:
    return all(pool.template.device == _CPU for pool in pools) or sum(pool.machines for pool in pools) == 1


def _instance(seat: Seat, model: ServedModel, *, is_local: bool) -> InstanceConfig:
    template, strategy = seat.pool.template, seat.option.strategy
    # A template knows the profile of a single device. Policies that predict need costs; those of a specification are of
    # no use to an instance that can measure itself.
    profile = template.profile if strategy.devices == 1 else None
    return msgspec.structs.replace(
        template,
        id=seat.name,
        role=seat.option.role,
        host=None if is_local else f"{seat.pool.name}-{seat.place.machine}",
        device=_device(template.device, seat),
        tp=strategy.tp,
        pp=strategy.pp,
        kv_memory=_kv_memory(seat, model),
        max_batch=template.max_batch if seat.option.batch is None else seat.option.batch,
        profile=profile,
        self_profile=profile is None,
    )


def _device(device: str, seat: Seat) -> str:
    return _CPU if device == _CPU else f"{device.partition(':')[0]}:{seat.place.first_device}"


def _kv_memory(seat: Seat, model: ServedModel) -> str | int:
    """What the plan counted with: in the template's words where these come to the same, else bytes."""
    pool, strategy = seat.pool, seat.option.strategy
    is_same = parse_size(pool.template.kv_memory) // pool.token_bytes(model) == pool.facts[strategy].kv_tokens
    return pool.template.kv_memory if is_same else pool.kv_bytes(strategy, model)


def _changed(section: msgspec.Struct) -> dict[str, Any]:
    """The keys that differ from their defaults, as YAML has them."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        if value != field.default or field.name in _ALWAYS.get(type(section), ()):
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _changed(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return msgspec.to_builtins(value)
