"""How fast an instance is, and how much it holds: of devices of the catalogue, or as a profile has it."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from common.config.sizes import parse_size
from common.costs.models import InstanceCosts
from common.errors import ConfigError
from common.kv.layout import KVDType
from common.messages.control import Role
from services.scheduling.profiles.profile import Origin, Profile, ProfileError, decode_profile
from services.simulator.cluster.cluster import SimulatedInstance
from services.simulator.cluster.keys import AssumedKeys, InstanceKeys
from services.simulator.cluster.served_model import ServedModel
from services.simulator.engine.timing import StepTimer
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.fitted import FittedTimer
from services.simulator.hardware.memory import UTILISATION, InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.micro_batches import kept_full, of_one_stage
from services.simulator.hardware.pipelined import PipelinedTimer
from services.simulator.hardware.slowed import slowed
from services.simulator.hardware.spec_profile import spec_profile, spec_throughput
from services.simulator.hardware.stages import require_suitable, stage_models, step_timer
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineSpec

_NO_LINK = LinkSpec(float("inf"), 0.0)
"""Of a pipeline that was measured: what passes between its stages is in their steps."""


class InstanceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The time models by role, what follows from them, and the room for KV."""

    timers: dict[Role, StepTimer]
    """Seconds from the begin of a step until it has ended; a PipelinedTimer where there are several stages."""
    costs: InstanceCosts
    """The same as lines, which is what policies see: latencies.

    With several stages their arguments are what the instance has that decodes, and the contexts of all that, of which
    a step computes its micro-batch's share; but the tokens of a step with a chunk are the step's.
    """
    throughput_costs: InstanceCosts
    """Seconds of the instance that work takes while it never waits for any; with one stage they are `costs`.

    With p stages prompts and rounds follow each other faster than each of them ends.  A round is one step of each of
    the p micro-batches: its budget is p times that of a step, and every sequence that decodes gets a token.
    """
    kv_tokens: int
    device: str
    """In words."""
    origin: Origin
    worst_fit: float
    """The largest relative error of the costs over the points that they were fitted to."""
    strategy: Strategy = Strategy()

    def instance(self, name: str, keys: InstanceKeys, role: Role, weight: float | None) -> SimulatedInstance:
        """An instance like this in `role`. With several stages `keys.budget` is of a micro-batch's step."""
        first, pipeline = _as_simulated(self.timers[role])
        return SimulatedInstance(
            name=name,
            role=role,
            timer=first,
            kv_tokens=self.kv_tokens,
            costs=self.costs,
            budget=keys.prefill_chunk if role is Role.PREFILL else keys.budget,
            max_batch=keys.max_batch,
            block_size=keys.block_size,
            weight=weight,
            pipeline=pipeline,
        )


def device_facts(
    device: DeviceSpec,
    model: ServedModel,
    strategy: Strategy = Strategy(),
    *,
    budget: int = 512,
    max_batch: int = 256,
    utilisation: float | None = None,
    kv_tokens: int | None = None,
    link: LinkSpec | None = None,
    among: Sequence[DeviceSpec] = (),
) -> InstanceFacts:
    """The facts of an instance over `strategy` of such devices, by the roofline.

    `budget` tokens per step and at most `max_batch` sequences; of a step of one micro-batch, and of all, where there
    are several stages.  `utilisation` of the memory is the engine's (None: 0.9), unless `kv_tokens` says how much KV
    it has: who says so takes the memory for it from wherever it is.  `link`: between the devices, see step_timer.
    Raises ConfigError for a dtype that the device lacks or a strategy that does not suit the model; InfeasibleError,
    which may name one of `among`, where the model does not fit or too little is left beside it.
    """
    device.require_dtype(model.dtype)
    share = 1.0 if kv_tokens is not None else utilisation or UTILISATION
    spec, dtype = model.spec, model.dtype
    room = kv_capacity_tokens(device, spec, dtype, strategy=strategy, utilisation=share, among=among)
    words = device.name if strategy.devices == 1 else f"{strategy.devices} × {device.name}, {strategy}"
    if kv_tokens is not None and kv_tokens > room:
        raise InfeasibleError(_too_much(kv_tokens, room, words, model))
    timer = step_timer(device, spec, dtype, strategy, link)
    try:
        profile = spec_profile(
            device, spec, dtype, budget, max_batch=max_batch, utilisation=share, strategy=strategy, link=link
        )
        full = profile.costs
        if isinstance(timer, PipelinedTimer):
            full = spec_throughput(timer, budget, max_batch, room)
    except ProfileError as error:
        raise InfeasibleError(
            f"{spec.name} in {dtype} leaves {words} room for {room} tokens of KV, too few to tell what its steps cost: "
            "spread it over more devices, or take one with more memory"
        ) from error
    timers: dict[Role, StepTimer] = dict.fromkeys(Role, timer)
    return _facts(profile, timers, full, room if kv_tokens is None else kv_tokens, words)


def profile_facts(profile: Profile, model: ServedModel, *, kv_tokens: int | None = None) -> InstanceFacts:
    """The facts of an instance as `profile` has it, whose ranks are those that were measured.

    Several stages are taken to be equal, for a profile has only the whole.  Raises ProfileError for a profile of
    another model or dtype, or one that does not say how much KV there is where `kv_tokens` does not either;
    ConfigError for ranks that do not suit the model.
    """
    model.require(profile)
    strategy = Strategy(profile.subject.tp, profile.subject.pp)
    room = kv_tokens or profile.kv_capacity_tokens
    if room is None:
        raise ProfileError("neither the profile nor the entry says how much KV it holds; give kv_tokens or kv_memory")
    costs, full = profile.costs, profile.costs
    timers: dict[Role, StepTimer] = {role: FittedTimer(costs, role) for role in Role}
    if strategy.pp > 1:
        require_suitable(model.spec, strategy)
        stage = of_one_stage(costs, strategy.pp)
        full = kept_full(stage, strategy.pp)
        timers = {role: _equal_stages(FittedTimer(stage, role), model, strategy.pp) for role in Role}
    words = profile.device + ("" if strategy.devices == 1 else f", {strategy}") + _slower(profile.slowdown)
    return _facts(profile, timers, full, room, words)


def instance_facts(keys: InstanceKeys, model: ServedModel, catalogue: Catalogue, folder: Path) -> InstanceFacts:
    """The facts of an entry of a cluster file in `folder`.

    Raises ConfigError for an unknown device, a dtype that it lacks, a strategy that does not suit the model or too
    little room (of these InfeasibleError where the model does not fit), ProfileError for a profile of something else.
    """
    wanted = _wanted_kv_tokens(keys, model)
    if keys.device is not None:
        facts = _of_device(keys, model, catalogue, wanted)
    else:
        facts = profile_facts(_read_profile(folder / str(keys.profile)), model, kv_tokens=wanted)
    if facts.kv_tokens < keys.block_size:
        raise ConfigError(
            f"its KV memory holds {facts.kv_tokens} tokens, less than one block of {keys.block_size}; give it more"
        )
    return _slowed(facts, keys.slowdown)


def _of_device(keys: InstanceKeys, model: ServedModel, catalogue: Catalogue, wanted: int | None) -> InstanceFacts:
    device = catalogue.device(str(keys.device))
    facts = device_facts(
        device.assuming(**msgspec.structs.asdict(keys.assume)),
        model,
        Strategy(keys.tp, keys.pp),
        budget=keys.budget,
        max_batch=keys.max_batch,
        utilisation=keys.utilisation,
        kv_tokens=wanted,
        among=catalogue.devices,
    )
    if keys.assume == AssumedKeys():
        return facts
    return msgspec.structs.replace(facts, device=f"{facts.device}, with assumed figures")


def _read_profile(path: Path) -> Profile:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"profile {str(path)!r} cannot be read: {error.strerror}") from error
    return decode_profile(data, str(path))


def _equal_stages(stage: StepTimer, model: ServedModel, stages: int) -> PipelinedTimer:
    layers = [part.layers for part in stage_models(model.spec, stages)]
    return PipelinedTimer([stage] * stages, layers, _NO_LINK, model.spec.hidden * KVDType(model.dtype).size_bytes)


def _as_simulated(timer: StepTimer) -> tuple[StepTimer, PipelineSpec | None]:
    """The timer of the first stage, or of the only one, and what follows it."""
    if not isinstance(timer, PipelinedTimer):
        return timer, None
    first, *later = timer.stages
    return first, PipelineSpec(
        later=tuple(later),
        layers=timer.layers,
        bytes_per_token=timer.bytes_per_token,
        link=timer.link,
        micro_batches=len(timer.stages),
    )


def _facts(
    profile: Profile, timers: dict[Role, StepTimer], full: InstanceCosts, kv_tokens: int, device: str
) -> InstanceFacts:
    return InstanceFacts(
        timers=timers,
        costs=profile.costs,
        throughput_costs=full,
        kv_tokens=kv_tokens,
        device=device,
        origin=profile.origin,
        worst_fit=max((fit.worst_relative_residual for fit in profile.fits.values()), default=0.0),
        strategy=Strategy(profile.subject.tp, profile.subject.pp),
    )


def _wanted_kv_tokens(keys: InstanceKeys, model: ServedModel) -> int | None:
    if keys.kv_memory is not None:
        return parse_size(keys.kv_memory) // model.token_bytes
    return keys.kv_tokens


def _too_much(wanted: int, room: int, device: str, model: ServedModel) -> str:
    size_gb, excess_gb = (tokens * model.token_bytes / 1e9 for tokens in (wanted, wanted - room))
    return (
        f"{wanted} tokens of KV are {size_gb:.2f} GB, {excess_gb:.2f} GB more than {model.spec.name} in {model.dtype} "
        f"leaves of all memory of {device}; at most {room} tokens fit"
    )


def _slowed(facts: InstanceFacts, slowdown: float) -> InstanceFacts:
    if slowdown == 1.0:
        return facts
    return msgspec.structs.replace(
        facts,
        timers={role: slowed(timer, slowdown) for role, timer in facts.timers.items()},
        costs=facts.costs.scaled(slowdown),
        throughput_costs=facts.throughput_costs.scaled(slowdown),
        device=facts.device + _slower(slowdown),
    )


def _slower(slowdown: float) -> str:
    return "" if slowdown == 1.0 else f", emulated at {slowdown:g} × its step times"
