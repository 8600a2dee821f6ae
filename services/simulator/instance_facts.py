"""How fast the instance of a cluster file's entry is, and how much it holds."""

from pathlib import Path

import msgspec

from common.config.sizes import parse_size
from common.costs.models import InstanceCosts
from common.errors import ConfigError
from common.messages.control import Role
from services.scheduling.profile import Origin, Profile, ProfileError, decode_profile
from services.simulator.cluster import SimulatedInstance
from services.simulator.cluster_keys import AssumedKeys, InstanceKeys
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.fitted import FittedTimer
from services.simulator.hardware.memory import UTILISATION, InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.slowed import SlowedTimer
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.served_model import ServedModel
from services.simulator.timing import StepTimer


class InstanceFacts(msgspec.Struct, frozen=True):
    """The time models by role, what policies see of them, and the room for KV."""

    timers: dict[Role, StepTimer]
    costs: InstanceCosts
    kv_tokens: int
    device: str
    """In words."""
    origin: Origin
    worst_fit: float
    """The largest relative error of the costs over the points that they were fitted to."""

    def instance(self, name: str, keys: InstanceKeys, role: Role, weight: float | None) -> SimulatedInstance:
        """An instance like this in `role`."""
        return SimulatedInstance(
            name=name,
            role=role,
            timer=self.timers[role],
            kv_tokens=self.kv_tokens,
            costs=self.costs,
            budget=keys.prefill_chunk if role is Role.PREFILL else keys.budget,
            max_batch=keys.max_batch,
            block_size=keys.block_size,
            weight=weight,
        )


def instance_facts(keys: InstanceKeys, model: ServedModel, catalogue: Catalogue, folder: Path) -> InstanceFacts:
    """The facts of an entry of a cluster file in `folder`.

    Raises ConfigError for an unknown device, a dtype that it lacks or too little room (of these InfeasibleError where
    the model does not fit), ProfileError for a profile of something else.
    """
    if keys.device is not None:
        facts = _of_device(keys, catalogue.device(keys.device), model)
    else:
        facts = _of_profile(keys, folder / str(keys.profile), model)
    if facts.kv_tokens < keys.block_size:
        raise ConfigError(
            f"its KV memory holds {facts.kv_tokens} tokens, less than one block of {keys.block_size}; give it more"
        )
    return _slowed(facts, keys.slowdown)


def _of_device(keys: InstanceKeys, device: DeviceSpec, model: ServedModel) -> InstanceFacts:
    device.require_dtype(model.dtype)
    assumed = device.assuming(**msgspec.structs.asdict(keys.assume))
    words = device.name if keys.assume == AssumedKeys() else f"{device.name}, with assumed figures"
    wanted = _wanted_kv_tokens(keys, model)
    # Who says how much KV there is to be takes the memory for it from wherever it is.
    utilisation = 1.0 if wanted is not None else keys.utilisation or UTILISATION
    spec, dtype = model.spec, model.dtype
    room = kv_capacity_tokens(assumed, spec, dtype, utilisation=utilisation)
    if wanted is not None and wanted > room:
        raise InfeasibleError(_too_much(wanted, room, device, model))
    profile = spec_profile(assumed, spec, dtype, keys.budget, max_batch=keys.max_batch, utilisation=utilisation)
    timers: dict[Role, StepTimer] = dict.fromkeys(Role, RooflineTimer(assumed, spec, dtype))
    return _facts(profile, timers, room if wanted is None else wanted, words)


def _of_profile(keys: InstanceKeys, path: Path, model: ServedModel) -> InstanceFacts:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"profile {str(path)!r} cannot be read: {error.strerror}") from error
    profile = decode_profile(data, str(path))
    model.require(profile)
    kv_tokens = _wanted_kv_tokens(keys, model) or profile.kv_capacity_tokens
    if kv_tokens is None:
        raise ProfileError("neither the profile nor the entry says how much KV it holds; give kv_tokens or kv_memory")
    timers: dict[Role, StepTimer] = {role: FittedTimer(profile.costs, role) for role in Role}
    return _facts(profile, timers, kv_tokens, profile.device + _slower(profile.slowdown))


def _facts(profile: Profile, timers: dict[Role, StepTimer], kv_tokens: int, device: str) -> InstanceFacts:
    worst = max((fit.worst_relative_residual for fit in profile.fits.values()), default=0.0)
    return InstanceFacts(timers, profile.costs, kv_tokens, device, profile.origin, worst)


def _wanted_kv_tokens(keys: InstanceKeys, model: ServedModel) -> int | None:
    if keys.kv_memory is not None:
        return parse_size(keys.kv_memory) // model.token_bytes
    return keys.kv_tokens


def _too_much(wanted: int, room: int, device: DeviceSpec, model: ServedModel) -> str:
    size_gb, excess_gb = (tokens * model.token_bytes / 1e9 for tokens in (wanted, wanted - room))
    return (
        f"{wanted} tokens of KV are {size_gb:.2f} GB, {excess_gb:.2f} GB more than {model.spec.name} in {model.dtype} "
        f"leaves of all memory of {device.name}; at most {room} tokens fit"
    )


def _slowed(facts: InstanceFacts, slowdown: float) -> InstanceFacts:
    if slowdown == 1.0:
        return facts
    return msgspec.structs.replace(
        facts,
        timers={role: SlowedTimer(timer, slowdown) for role, timer in facts.timers.items()},
        costs=facts.costs.scaled(slowdown),
        device=facts.device + _slower(slowdown),
    )


def _slower(slowdown: float) -> str:
    return "" if slowdown == 1.0 else f", emulated at {slowdown:g} × its step times"
