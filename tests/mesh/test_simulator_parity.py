"""What a live gateway decided, decided again by the life cycle that the simulator makes for itself."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import pytest

import services.gateway.service
from common.config.types import InstanceConfig, MeshConfig
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.ids import RequestId
from common.messages.control import LinkMeasured, Register, Role
from services.scheduling.lifecycle.events import Arrived, Finish, LifecycleEffect, LifecycleEvent, Place
from services.scheduling.lifecycle.lifecycle import Lifecycle
from services.scheduling.membership.members import MemberJoined
from services.scheduling.placement import Placement
from services.scheduling.policies.registry import load_policy
from services.scheduling.profiles.profile import Origin, Profile, Subject, encode_profile
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.links import LinkSpec
from services.simulator.simulation import Simulation
from services.simulator.workload.requests import TracedRequest, Workload
from tests.mesh.inprocess import InProcessMesh, in_process_mesh, mesh_config

REQUESTS = 24
Decision = tuple[LifecycleEvent, list[LifecycleEffect]]


class RecordingLifecycle(Lifecycle):
    """Keeps every event, in the order in which they were handled, with what was decided."""

    decisions: list[Decision]

    def handle(self, event: LifecycleEvent) -> list[LifecycleEffect]:
        effects = super().handle(event)
        self.decisions.append((event, effects))
        return effects


# ---------------------------------------------------------------- a live run


def costs(per_token: float) -> InstanceCosts:
    """Far from the truth, and far apart: what the policy is told, not what the steps take."""
    mixed = MixedStepCost(base=0.05, per_token=per_token, per_chunk_context=1e-4, per_decode_context=1e-5)
    return InstanceCosts(PrefillCost(0.05, per_token), mixed, DecodeStepCost(0.05, 1e-3, 1e-5))


PER_TOKEN = {"p0": 0.004, "p1": 0.006, "d0": 0.010, "d1": 0.015}


def configured(policy: str, folder: Path) -> MeshConfig:
    """2 P and 2 D, of four speeds by their profiles."""
    config = mesh_config(prefill=2, decode=2)
    # Nobody stops here, and a crowd on a busy machine may keep a loop from running for half a second.
    config = msgspec.structs.replace(config, transfer=msgspec.structs.replace(config.transfer, progress_timeout_s=10.0))

    def with_profile(instance: InstanceConfig) -> InstanceConfig:
        file = folder / f"{instance.id}.json"
        profile = Profile(Subject("deterministic", "float32"), Origin.SPEC, "-", costs(PER_TOKEN[instance.id]), {})
        file.write_bytes(encode_profile(profile))
        return msgspec.structs.replace(instance, profile=str(file))

    split = 0.6 if policy == "fixed" else "full"
    instances = tuple(with_profile(instance) for instance in config.instances)
    return msgspec.structs.replace(config, policy=policy, split=split, instances=instances)


async def serve(mesh: InProcessMesh) -> None:
    """Some requests one after another, then a crowd."""
    prompts = [f"request {number} " + "of some length " * (number % 7) for number in range(REQUESTS)]
    for number, prompt in enumerate(prompts[:4]):
        assert (await mesh.complete(prompt, max_tokens=5 + number)).status == 200
    answers = await asyncio.gather(*(mesh.complete(prompt, max_tokens=20) for prompt in prompts[4:]))
    assert {answer.status for answer in answers} == {200}


async def live_run(
    policy: str, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Decision], MeshConfig]:
    decisions: list[Decision] = []
    monkeypatch.setattr(RecordingLifecycle, "decisions", decisions, raising=False)
    monkeypatch.setattr(services.gateway.service, "Lifecycle", RecordingLifecycle)
    config = configured(policy, folder)
    async with in_process_mesh(config, model) as mesh:
        # The links are measured meanwhile: some placements should know them.
        await mesh.until(lambda: len(mesh.gateway.mesh.links()) == 4)
        await serve(mesh)
        await mesh.until_nothing_is_held()
        recorded = list(decisions)
    return recorded, config


# ---------------------------------------------------------------- the same again


class Unasked(StepTimer):
    """Nothing is simulated here but decisions."""

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        raise NotImplementedError

    def decode_line(self, decodes: int) -> DecodeLine:
        raise NotImplementedError


def simulation_of(config: MeshConfig, members: Iterable[Register]) -> Simulation:
    """A simulation of a cluster that is described as the live one was configured."""
    by_name = {member.instance: member for member in members}
    instances = tuple(
        SimulatedInstance(
            name=instance.id,
            role=instance.role,
            timer=Unasked(),
            kv_tokens=by_name[instance.id].kv_capacity_tokens,
            costs=costs(PER_TOKEN[instance.id]),
            budget=instance.prefill_chunk if instance.role is Role.PREFILL else instance.budget,
            max_batch=instance.max_batch,
            block_size=instance.block_size,
        )
        for instance in config.instances
    )
    layout = next(iter(by_name.values())).layout
    cluster = Cluster(instances, len(layout.layers), layout.token_bytes, LinkSpec(1e9))
    work = Workload("replayed", "a test", tuple(TracedRequest(0.0, 1, 1) for _ in range(REQUESTS)))
    return Simulation(
        cluster,
        load_policy(config.policy, config.split),
        work,
        prefill_slots=config.gateway.prefill_slots,
        output_lengths=config.output_lengths,
    )


def members_of(decisions: list[Decision]) -> list[Register]:
    return [event.member for event, _ in decisions if isinstance(event, MemberJoined)]


def placements(decisions: Iterable[Decision]) -> dict[RequestId, Placement]:
    return {
        effect.request: effect.placement for _, effects in decisions for effect in effects if isinstance(effect, Place)
    }


@pytest.mark.parametrize("policy", ["cronus", "fixed", "capacity"])
async def test_the_simulators_life_cycle_decides_as_the_live_one_did(
    policy: str, tmp_path: Path, deterministic_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions, config = await live_run(policy, tmp_path, deterministic_folder, monkeypatch)
    placed = placements(decisions)
    assert len(placed) == REQUESTS
    if policy != "fixed":
        assert len({placement.split for placement in placed.values()}) > 5
        assert all(placement.candidates for placement in placed.values())
    assert {placement.decode for placement in placed.values()} == {"d0", "d1"}
    assert {placement.prefill for placement in placed.values()} >= {"p0", "p1"}
    waited = sum(isinstance(event, Arrived) and effects == [] for event, effects in decisions)
    assert waited > 0, "some requests should have waited for a slot"
    lifecycle = simulation_of(config, members_of(decisions))._lifecycle
    for event, effects in decisions:
        assert lifecycle.handle(event) == effects
    assert lifecycle.is_idle()


@pytest.mark.parametrize("policy", ["cronus", "fixed", "capacity"])
async def test_simulated_members_are_to_the_policy_what_live_ones_are(
    policy: str, tmp_path: Path, deterministic_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions, config = await live_run(policy, tmp_path, deterministic_folder, monkeypatch)
    simulation = simulation_of(config, members_of(decisions))
    specs = {spec.name: spec for spec in simulation.cluster.instances}

    def registered(event: LifecycleEvent) -> LifecycleEvent:
        if not isinstance(event, MemberJoined):
            return event
        live = event.member
        simulated = simulation._registration(specs[live.instance])
        # In place of an address and of the number of its life, which the other events name.
        return MemberJoined(msgspec.structs.replace(simulated, generation=live.generation, endpoints=live.endpoints))

    again = [(event, simulation._lifecycle.handle(registered(event))) for event, _ in decisions]
    assert placements(again) == placements(decisions)
    assert sum(isinstance(effect, Finish) for _, effects in again for effect in effects) == REQUESTS
    assert any(isinstance(event, LinkMeasured) for event, _ in decisions)
