"""The costs with which an instance registers: from a profile's file, or measured when it starts."""

import logging
from pathlib import Path

import msgspec

from common.config.types import InstanceConfig
from common.costs.models import InstanceCosts
from common.costs.step import Step
from common.errors import ConfigError
from common.kv.layout import KVLayout
from services.engine.runner import Runner
from services.engine.thread import EngineThread
from services.scheduling.continuous import BatchLimits
from services.scheduling.profiles.fit import fit_costs
from services.scheduling.profiles.profile import Fit, Point, Profile, ProfileError, Subject, decode_profile
from services.scheduling.profiles.profile_grid import STARTUP, GridLimits, grid_steps, point_of

_log = logging.getLogger(__name__)

_SHORT_S = 0.1
_MORE_RUNS = 2
"""A step that is this short is run more often, since that costs little and its time varies most."""


async def costs_at_start(
    instance: InstanceConfig, limits: BatchLimits, engine: EngineThread, runner: Runner
) -> InstanceCosts | None:
    """What the steps of `instance` cost, as far as its configuration says how to know; `engine` then corrects them.

    Called when the model is loaded and before there can be a job.  Raises ConfigError for a profile that cannot be read
    or is of something else, and where an instance that should measure itself cannot.
    """
    if instance.profile is None and not instance.self_profile:
        return None
    try:
        if instance.profile is not None:
            costs = costs_of(read_profile(instance.profile), instance, runner.layout)
        else:
            costs = await _measured(limits, engine, runner)
    except ProfileError as error:
        key = "profile" if instance.profile is not None else "self_profile"
        raise ConfigError(f"{key} of {instance.id}: {error}") from error
    engine.use_costs(costs)
    return costs


def read_profile(path: str) -> Profile:
    """The profile in a file. Raises ProfileError."""
    try:
        return decode_profile(Path(path).read_bytes(), path)
    except OSError as error:
        raise ProfileError(f"{path!r} cannot be read: {error.strerror}; write it with `pdmesh profile`") from error


def costs_of(profile: Profile, instance: InstanceConfig, layout: KVLayout) -> InstanceCosts:
    """The costs of `instance`, which keeps KV as `layout`, by `profile`. Raises ProfileError where it is of another.

    The emulation stretches every step alike, so that the profile of a device is that of each emulated slowdown too.
    """
    profile.require(Subject(model=layout.model, dtype=layout.dtype.value))
    if profile.threads is not None and profile.threads != instance.threads:
        _log.warning("profiled with %s threads, and has %s; its costs are a guess", profile.threads, instance.threads)
    return profile.costs.scaled(instance.emulate.slowdown / profile.slowdown)


async def _measured(limits: BatchLimits, engine: EngineThread, runner: Runner) -> InstanceCosts:
    grid = GridLimits(
        context_length=runner.context_length,
        kv_capacity_tokens=runner.num_blocks * runner.layout.block_size,
        block_size=runner.layout.block_size,
        max_batch=limits.max_sequences,
        budget=limits.budget or limits.chunk,
    )
    steps = grid_steps(grid, STARTUP)
    _log.info("measuring %d steps", len(steps))
    costs, fits = fit_costs([await _point(step, engine) for step in steps])
    _log.info("measured: %s", "; ".join(_words(name, costs, fit) for name, fit in fits.items()))
    return costs


async def _point(step: Step, engine: EngineThread) -> Point:
    seconds = await engine.measure(step, 1)
    if seconds[0] < _SHORT_S:
        seconds += await engine.measure(step, _MORE_RUNS)
    return point_of(step, seconds)


def _words(model: str, costs: InstanceCosts, fit: Fit) -> str:
    coefficients = msgspec.structs.asdict(getattr(costs, model))
    values = ", ".join(f"{name} {value:.3g} s" for name, value in coefficients.items())
    return f"{model}: {values} (R² {fit.r2:.3f})"
