"""A mesh.yaml in the simulator: what is taken from it, and what its rows say."""

from pathlib import Path

import pytest

from common.config.types import EmulateConfig, GatewayConfig, InstanceConfig, MeshConfig
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.bench.load.run import LoadFigures
from services.bench.policies.mesh_rows import MeshLoad, Unpredicted, mesh_rows, mesh_summary, predict_mesh
from services.bench.policies.mesh_runs import MeshServed, NamedMesh, bench_config, load_meshes
from services.bench.policies.mesh_system import ModelFacts, mesh_system, read_model_facts
from services.scheduling.profiles.profile import Origin, Profile, ProfileError, Subject, encode_profile
from services.simulator.runs.system import serve
from services.simulator.workload.arrivals import all_at_once
from services.simulator.workload.requests import scaled
from services.simulator.workload.synthetic import synthetic

COSTS = InstanceCosts(
    PrefillCost(0.005, 0.001), MixedStepCost(0.01, 0.001, 1e-6, 1e-6), DecodeStepCost(0.01, 0.001, 1e-6)
)
PROFILE = Profile(
    subject=Subject("m", "float32"),
    origin=Origin.MEASURED,
    device="cpu",
    costs=COSTS,
    fits={},
    slowdown=2.0,
    kv_capacity_tokens=5_000,
)
MODEL = ModelFacts(layers=2, kv_values=2 * 2 * 3 * 64, vocab_size=1000)
P0 = InstanceConfig(
    id=InstanceId("p0"), role=Role.PREFILL, prefill_chunk=64, block_size=32, emulate=EmulateConfig(slowdown=3.0)
)
D0 = InstanceConfig(
    id=InstanceId("d0"), role=Role.DECODE, dtype="bfloat16", kv_memory="10MB", max_batch=5, budget=48, weight=2.5
)
MESH = MeshConfig(
    policy="fixed", split=0.5, gateway=GatewayConfig(prefill_slots=3), instances=(P0, D0), model="some/model"
)
PROFILES = {instance.id: PROFILE for instance in (P0, D0)}
WORKLOAD = all_at_once(scaled(synthetic(20, seed=3), 16))


def test_everything_that_a_mesh_says_of_its_instances_is_simulated() -> None:
    system = mesh_system(MESH, "mine", PROFILES, MODEL)
    prefill, decode = system.cluster.instances
    assert (system.policy, system.split, system.prefill_slots) == ("fixed", 0.5, 3)
    assert (prefill.role, prefill.budget, prefill.block_size) == (Role.PREFILL, 64, 32)
    assert (decode.role, decode.budget, decode.max_batch, decode.weight) == (Role.DECODE, 48, 5, 2.5)
    # 1 GiB in float32 and 10 MB in bfloat16, in whole blocks.
    assert prefill.kv_tokens == (1 << 30) // (32 * 768 * 4) * 32
    assert decode.kv_tokens == 10_000_000 // (16 * 768 * 2) * 16
    assert system.cluster.kv_bytes_per_token == 768 * 2
    # Profiled at a slowdown of 2: a step takes 3/2 of that at 3, and half of it at 1.
    assert prefill.costs == COSTS.scaled(1.5)
    assert decode.timer.decode_line(4).base == pytest.approx(0.5 * (0.01 + 4 * 0.001))
    report = serve(system, WORKLOAD)
    assert 0.3 < report.split_share < 0.6


def test_without_a_known_kv_the_profile_says_how_much_there_is() -> None:
    model = ModelFacts(layers=1, kv_values=None, vocab_size=10)
    assert {instance.kv_tokens for instance in mesh_system(MESH, "m", PROFILES, model).cluster.instances} == {5_000}
    silent = Profile(PROFILE.subject, PROFILE.origin, "cpu", COSTS, {})
    with pytest.raises(ProfileError, match="p0 does not say how many tokens"):
        mesh_system(MESH, "m", {P0.id: silent, D0.id: PROFILE}, model)


def test_facts_are_read_from_the_config_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"text_config": {"vocab_size": 50, "num_hidden_layers": 4, "num_attention_heads": 8, '
        '"num_key_value_heads": 2, "hidden_size": 64}}'
    )
    assert read_model_facts(tmp_path) == ModelFacts(layers=4, kv_values=2 * 4 * 2 * 8, vocab_size=50)
    (tmp_path / "config.json").write_text('{"vocab_size": 258}')
    assert read_model_facts(tmp_path) == ModelFacts(layers=1, kv_values=None, vocab_size=258)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"no usable config\.json"):
        read_model_facts(tmp_path)


def test_a_mesh_without_every_profile_is_not_predicted(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_bytes(encode_profile(PROFILE))
    with_one = MeshConfig(instances=(InstanceConfig(id=P0.id, role=P0.role, profile=str(file)), D0))
    assert predict_mesh(NamedMesh("m", with_one), WORKLOAD, MODEL) == Unpredicted("d0: no profile")


def write(file: Path, model: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"model: {model}\npolicy: dp\ninstances: [{{id: d0, role: decode}}]\n")
    return file


def test_meshes_are_named_by_their_files(tmp_path: Path) -> None:
    one, two, twin = (write(tmp_path / name, "m") for name in ("one.yaml", "two.yaml", "sub/one.yaml"))
    assert [mesh.name for mesh in load_meshes([one, two], {})] == ["one", "two"]
    assert [mesh.name for mesh in load_meshes([one, two, twin], {})] == [str(one), "two", str(twin)]
    with pytest.raises(ConfigError, match="one file twice"):
        load_meshes([one, one], {})
    with pytest.raises(ConfigError, match=r"other\.yaml serves 'n' and .*one\.yaml serves 'm'"):
        load_meshes([one, write(tmp_path / "other.yaml", "n")], {})


def test_a_mesh_is_measured_on_free_ports_with_room_for_all_requests() -> None:
    gateway = bench_config(MESH, 5000).gateway
    assert (gateway.http, gateway.control) == ("127.0.0.1:0", "tcp://127.0.0.1:0")
    assert gateway.queue == 5000
    assert gateway.prefill_slots == 3
    assert bench_config(MESH, 1).gateway.queue == MESH.gateway.queue


def figures(throughput: float) -> LoadFigures:
    return LoadFigures(20, throughput, 60.0, 1.0, 1.0, 2.0, 0.03, 0.03, 0.1)


def test_the_first_mesh_is_held_against_the_best_of_the_others() -> None:
    meshes = [NamedMesh(name, MESH) for name in ("planned", "good", "bad")]
    # The second round was on a slower machine; only ratios of one round say anything.
    served = [
        MeshServed(mesh, (figures(rate), figures(rate / 2), figures(rate)), texts)
        for mesh, rate, texts in zip(meshes, (4.0, 5.0, 1.0), (("a", "b"), ("a", "c"), ("x", "y")), strict=True)
    ]
    report = serve(mesh_system(MESH, "m", PROFILES, MODEL), WORKLOAD)
    predicted = {"planned": report, "good": report, "bad": Unpredicted("d0: no profile")}
    rows = mesh_rows(served, predicted, MeshLoad("all_at_once", None, WORKLOAD))
    assert [row["same_answers"] for row in rows] == [1.0, 0.5, 0.0]
    assert rows[0]["where"] == "emulated"
    assert rows[0]["instances"] == "p0 prefill 3 x slower, d0 decode"
    assert rows[0]["predicted_throughput_rps"] == report.throughput_rps
    assert rows[2]["predicted_throughput_rps"] is None
    summary = mesh_summary(served, rows)
    assert summary["first_over_best_other"] == pytest.approx(0.8)
    assert "predicted_first_over_best_other" not in summary
    errors = [abs(report.throughput_rps / rate - 1) for rate in (4.0, 5.0)]
    assert summary["prediction_error_throughput_rps"] == pytest.approx(sum(errors) / 2)


def test_one_mesh_without_a_prediction_has_nothing_to_be_compared_with() -> None:
    served = [MeshServed(NamedMesh("m", MESH), (figures(4.0),), ("a",))]
    rows = mesh_rows(served, {"m": Unpredicted("no")}, MeshLoad("rate", 2.0, WORKLOAD))
    assert mesh_summary(served, rows) == {}
