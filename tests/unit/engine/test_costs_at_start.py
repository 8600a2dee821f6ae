"""The costs with which an instance registers: from its profile, measured, or none; a wrong profile keeps it out."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.clock import ManualClock
from common.config.types import EmulateConfig, InstanceConfig
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from common.costs.step import Step
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.engine.build import decode_limits
from services.engine.measuring.costs import costs_at_start
from services.engine.measuring.facts import device_facts
from services.engine.runner import Runner
from services.engine.thread import EngineThread
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.profiles.profile import Origin, Profile, Subject, encode_profile

COSTS = InstanceCosts(PrefillCost(0.1, 0.01), MixedStepCost(0.1, 0.01, 1e-5, 2e-5), DecodeStepCost(0.1, 0.02, 1e-5))
PROFILE = Profile(
    subject=Subject("deterministic", "float32"),
    origin=Origin.MEASURED,
    device="a device",
    costs=COSTS,
    fits={},
    threads=2,
    slowdown=2.0,
)
STEP_S = 0.25


def instance(**keys: Any) -> InstanceConfig:
    return InstanceConfig(id=InstanceId("d0"), role=Role.DECODE, threads=2, **keys)


def profile_file(folder: Path, **changes: Any) -> str:
    file = folder / "d0.json"
    file.write_bytes(encode_profile(msgspec.structs.replace(PROFILE, **changes)))
    return str(file)


@asynccontextmanager
async def started(config: InstanceConfig, num_blocks: int = 1024) -> AsyncIterator[tuple[EngineThread, Runner]]:
    """An engine on a clock that only its steps move, by STEP_S each."""
    clock = ManualClock()

    def build() -> Runner:
        return DeterministicRunner(deterministic_layout(), num_blocks, step_seconds=STEP_S, sleep=clock.advance)

    engine = EngineThread(
        build,
        decode_limits(config),
        lambda event: None,
        clock,
        slowdown=config.emulate.slowdown,
        sleep=clock.advance,
    )
    runner = await engine.start()
    try:
        yield engine, runner
    finally:
        await engine.stop()


async def costs_of(config: InstanceConfig, num_blocks: int = 1024) -> InstanceCosts | None:
    async with started(config, num_blocks) as (engine, runner):
        costs = await costs_at_start(config, decode_limits(config), engine, runner)
        # Whatever was measured for it has been given back.
        await engine.check_integrity()
        assert engine.load().blocks_used == 0
        return costs


async def test_nothing_is_known_where_nothing_is_said() -> None:
    assert await costs_of(instance()) is None


async def test_a_profile_of_this_instance_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = instance(profile=profile_file(tmp_path), emulate=EmulateConfig(slowdown=2.0))
    assert await costs_of(config) == COSTS
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_profile_of_the_device_serves_each_emulation_of_it(tmp_path: Path) -> None:
    """It was profiled twice as slow as it is, and is to be emulated six times as slow."""
    config = instance(profile=profile_file(tmp_path), emulate=EmulateConfig(slowdown=6.0))
    assert await costs_of(config) == COSTS.scaled(3.0)


async def test_other_threads_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await costs_of(instance(profile=profile_file(tmp_path, threads=7)))
    assert "profiled with 7 threads, and has 2" in caplog.text


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        (Subject("another", "float32"), "model 'another', and the instance has model 'deterministic'"),
        (Subject("deterministic", "bfloat16"), "dtype 'bfloat16', and the instance has dtype 'float32'"),
        (Subject("deterministic", "float32", tp=2), "tp 2, and the instance has tp 1"),
    ],
)
async def test_a_profile_of_something_else_keeps_the_instance_out(tmp_path: Path, subject: Subject, named: str) -> None:
    path = profile_file(tmp_path, subject=subject)
    with pytest.raises(ConfigError, match="profile of d0: ") as refusal:
        await costs_of(instance(profile=path))
    assert named in str(refusal.value)


async def test_a_profile_that_cannot_be_read_keeps_the_instance_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"profile of d0: '.*nowhere\.json' cannot be read: No such file"):
        await costs_of(instance(profile=str(tmp_path / "nowhere.json")))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a profile"):
        await costs_of(instance(profile=str(tmp_path / "x.json")))


async def test_an_instance_that_measures_itself_predicts_its_own_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    costs = await costs_of(instance(self_profile=True, emulate=EmulateConfig(slowdown=3.0)))
    assert costs is not None
    for step in (Step(StepShape(100), True), Step(StepShape(50, 100, 3, 90)), Step(StepShape(0, 0, 7, 300))):
        assert step.seconds(costs) == pytest.approx(3 * STEP_S)
    assert "measured: prefill: base 0.75 s" in caplog.text


async def test_an_instance_too_small_to_measure_itself_says_so() -> None:
    with pytest.raises(ConfigError, match="self_profile of d0: KV for 64 tokens"):
        await costs_of(instance(self_profile=True), num_blocks=4)


def test_what_it_says_of_its_device() -> None:
    facts = device_facts(instance(emulate=EmulateConfig(slowdown=3.0)), deterministic_layout())
    assert (facts.dtype, facts.threads, facts.slowdown, facts.tp, facts.pp) == ("float32", 2, 3.0, 1, 1)
    assert facts.name
