"""Cluster files: what they turn into, and what is wrong with those that cannot be used."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from common.config.typed import typed
from common.errors import ConfigError
from common.messages.control import Role
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.cronus import CronusPolicy
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.weighted import WeightedPolicy
from services.scheduling.profiles.profile import Origin, Profile, Subject, encode_profile
from services.simulator.cluster.file import ClusterFile, load_cluster_file
from services.simulator.cluster.keys import ClusterKeys
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.memory import InfeasibleError
from services.simulator.hardware.models import find_model
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.hardware.strategy import Strategy

CATALOGUE = load_catalogue()
LLAMA = find_model("LLaMA3-8B")
SPEC = spec_profile(CATALOGUE.device("A10"), LLAMA, "float16", 512)
MEASURED = msgspec.structs.replace(SPEC, origin=Origin.MEASURED, subject=Subject("c0ffee", "float16", tp=2))
A10 = {"id": "a10", "role": "prefill", "device": "A10"}
A100 = {"id": "a100", "role": "decode", "device": "A100 80GB SXM"}
BOTH_DECODE = {"a10": "decode"}


def loaded(folder: Path, **keys: Any) -> ClusterFile:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump({"model": "LLaMA3-8B", "instances": [A10, A100], **keys}))
    return load_cluster_file(file, CATALOGUE)


def with_profile(folder: Path, profile: Profile, **keys: Any) -> ClusterFile:
    (folder / "a10.json").write_bytes(encode_profile(profile))
    return loaded(folder, **{"instances": [{"id": "a10", "role": "prefill", "profile": "a10.json"}, A100], **keys})


# ---------------------------------------------------------------- what a file turns into


def test_policies_use_the_roles_as_they_are_written(tmp_path):
    cronus, disagg = loaded(tmp_path).systems(["cronus", "disagg"])
    assert (cronus.name, disagg.policy) == ("cronus", "disagg")
    for system in (cronus, disagg):
        assert [(spec.name, spec.role) for spec in system.cluster.instances] == [
            ("a10", Role.PREFILL),
            ("a100", Role.DECODE),
        ]
        assert system.cluster.layers == 32
        assert system.cluster.kv_bytes_per_token == 131072
        assert system.cluster.link.bytes_per_s == 12.5e9
    assert isinstance(cronus.placement_policy(), CronusPolicy)


def test_the_truth_is_the_roofline_and_what_policies_see_is_fitted_to_it(tmp_path):
    (system,) = loaded(tmp_path).systems(["cronus"])
    spec = system.cluster.instances[0]
    truth = RooflineTimer(CATALOGUE.device("A10"), LLAMA, "float16")
    for length in (128, 1000, 8000):
        assert spec.timer.step_seconds(((length, 0),), 0, 0) == truth.step_seconds(((length, 0),), 0, 0)
    assert spec.costs == SPEC.costs
    assert spec.costs.prefill.seconds(8000) != spec.timer.step_seconds(((8000, 0),), 0, 0)
    assert spec.kv_tokens == SPEC.kv_capacity_tokens


def test_roles_weights_and_options_of_a_system_go_before_the_files_own(tmp_path):
    file = loaded(
        tmp_path,
        prefill_slots=3,
        balance="stages",
        systems=[
            {"name": "ours", "policy": "cronus"},
            {"name": "first", "policy": "cronus", "balance": "finish", "prefill_slots": 1},
            {"name": "dp", "policy": "dp", "roles": BOTH_DECODE, "weights": {"a10": 1, "a100": 6}},
            {"name": "high-low", "policy": "disagg", "roles": {"a10": "decode", "a100": "prefill"}},
            {"name": "alone", "policy": "fixed", "split": 0, "roles": {"a10": None}},
        ],
    )
    ours, first, dp, high_low, alone = file.systems()
    assert (ours.balance, ours.prefill_slots) == (Balance.STAGES, 3)
    assert (first.balance, first.prefill_slots) == (Balance.FINISH, 1)
    assert [(spec.role, spec.weight, spec.budget) for spec in dp.cluster.instances] == [
        (Role.DECODE, 1, 512),
        (Role.DECODE, 6, 512),
    ]
    assert isinstance(dp.placement_policy(), WeightedPolicy)
    # In the role prefill the budget is a chunk, and there is none.
    assert [(spec.role, spec.budget) for spec in high_low.cluster.instances] == [
        (Role.DECODE, 512),
        (Role.PREFILL, None),
    ]
    assert [spec.name for spec in alone.cluster.instances] == ["a100"]
    assert isinstance(alone.placement_policy(), FixedPolicy)


def test_what_is_still_to_be_tuned(tmp_path):
    dp, fixed, whole = loaded(
        tmp_path,
        systems=[
            {"name": "dp", "policy": "dp", "roles": BOTH_DECODE, "weights": "tuned"},
            {"name": "fixed", "policy": "fixed", "split": "tuned"},
            {"name": "whole", "policy": "fixed"},
        ],
    ).systems()
    assert (dp.tunes_weights, dp.tunes_split) == (True, False)
    assert (fixed.tunes_weights, fixed.tunes_split) == (False, True)
    assert (whole.tunes_weights, whole.tunes_split, whole.split) == (False, False, "full")


def test_names_choose_systems_by_name_and_else_by_policy(tmp_path):
    file = loaded(
        tmp_path,
        systems=[
            {"name": "a", "policy": "cronus"},
            {"name": "b", "policy": "disagg"},
            {"name": "disagg", "policy": "cronus"},
        ],
    )
    assert [system.name for system in file.systems()] == ["a", "b", "disagg"]
    assert [system.name for system in file.systems(["cronus", "a"])] == ["a", "disagg"]
    assert [(system.name, system.policy) for system in file.systems(["disagg"])] == [("disagg", "cronus")]
    with pytest.raises(ConfigError, match="'dp'; there are a, b, disagg"):
        file.systems(["dp"])


def test_an_entry_may_stand_for_several_instances(tmp_path):
    entry = {**A100, "count": 3, "weight": 2.0}
    (system,) = loaded(tmp_path, instances=[entry]).systems(["dp"])
    assert [spec.name for spec in system.cluster.instances] == ["a100-0", "a100-1", "a100-2"]
    assert {spec.weight for spec in system.cluster.instances} == {2.0}
    assert system.entry_sizes() == {"a100": 3}


def test_a_slowdown_is_true_and_known(tmp_path):
    plain, slow = (
        loaded(tmp_path, instances=[{**A10, **more}, A100]).systems(["cronus"])[0].cluster.instances[0]
        for more in ({}, {"slowdown": 3})
    )
    step = (((300, 100),), 7, 4000)
    assert slow.timer.step_seconds(*step) == pytest.approx(3 * plain.timer.step_seconds(*step))
    assert slow.timer.decode_line(5).per_context == pytest.approx(3 * plain.timer.decode_line(5).per_context)
    assert slow.costs.prefill.seconds(500) == pytest.approx(3 * plain.costs.prefill.seconds(500))
    assert (
        "A10, emulated at 3 × its step times"
        in loaded(tmp_path, instances=[{**A10, "slowdown": 3}, A100]).facts["a10"].device
    )


def test_assumed_figures_replace_the_catalogues(tmp_path):
    assume = {"compute_efficiency": 0.2}
    facts = loaded(tmp_path, instances=[{**A10, "assume": assume}, A100]).facts["a10"]
    assumed = RooflineTimer(CATALOGUE.device("A10").assuming(compute_efficiency=0.2), LLAMA, "float16")
    step = (((2000, 0),), 0, 0)
    assert facts.timers[Role.PREFILL].step_seconds(*step) == assumed.step_seconds(*step)
    assert facts.device == "A10, with assumed figures"


def test_room_for_kv_in_tokens_or_bytes_or_as_a_share(tmp_path):
    def kv_tokens(**keys: Any) -> int:
        return loaded(tmp_path, instances=[{**A10, **keys}, A100]).facts["a10"].kv_tokens

    assert kv_tokens(kv_tokens=4000) == 4000
    assert kv_tokens(kv_memory="1GiB") == 8192
    assert kv_tokens(utilisation=0.8) < kv_tokens() == SPEC.kv_capacity_tokens < kv_tokens(utilisation=1)
    # What is said outright may take more than the share of the memory that an engine takes by itself.
    assert kv_tokens(kv_tokens=kv_tokens() + 1000) == kv_tokens() + 1000


# ---------------------------------------------------------------- several devices, and one's own


def test_an_entry_over_several_devices(tmp_path):
    entries = [{**A10, "tp": 2}, {**A100, "tp": 2, "pp": 2}]
    file = loaded(tmp_path, instances=entries)
    (system,) = file.systems(["disagg"])
    p, d = system.cluster.instances
    assert (p.pipeline, d.pipeline.layers, d.pipeline.micro_batches) == (None, (16, 16), 2)
    assert (file.facts["a10"].strategy, file.facts["a100"].strategy) == (Strategy(2), Strategy(2, 2))
    assert file.facts["a10"].device == "2 × A10, TP2"
    assert p.kv_tokens > 4 * SPEC.kv_capacity_tokens
    assert p.costs.prefill.seconds(1000) < 0.7 * SPEC.costs.prefill.seconds(1000)


def test_a_slow_pipeline_is_slow_in_every_stage(tmp_path):
    plain, slow = (
        loaded(tmp_path, instances=[A10, {**A100, "pp": 2, **more}]).facts["a100"] for more in ({}, {"slowdown": 2})
    )
    step = (((300, 100),), 7, 4000)
    for role in Role:
        assert slow.timers[role].step_seconds(*step) == pytest.approx(2 * plain.timers[role].step_seconds(*step))
    assert slow.throughput_costs.prefill.seconds(500) == pytest.approx(2 * plain.throughput_costs.prefill.seconds(500))


def test_a_strategy_that_cannot_be(tmp_path):
    for keys, said in (
        ({"tp": 3}, r"instances\[0\] \(a10\): tp 3 and pp 1: each must be a power of two"),
        ({"tp": 64}, r"\(a10\): TP64 does not divide the 32 heads of LLaMA3-8B.* it can be TP1, TP2"),
        ({"tp": 0}, r"instances\[0\]\.tp is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            loaded(tmp_path, instances=[{**A10, **keys}, A100])
    with_ranks = {"id": "a10", "role": "prefill", "profile": "a10.json", "pp": 2}
    with pytest.raises(ConfigError, match=r"instances\[0\] has tp 1 and pp 2, and a profile is of the ranks that were"):
        with_profile(tmp_path, SPEC, instances=[with_ranks, A100])


TWICE_AN_A10 = """
[[devices]]
name = "X1"
vendor = "other"
fp16_tflops = [250, "recalled"]
memory_mib = [22589, "recalled"]
memory_gb_s = [600, "recalled"]
interconnect = "none"
interconnect_gb_s = [0, "recalled"]
host_link = "PCIe 4 x16"
host_link_gb_s = [32, "recalled"]
tdp_w = [150, "recalled"]
compute_efficiency = [0.48, "recalled"]
memory_efficiency = [0.8, "recalled"]
step_overhead_ms = [5, "recalled"]
"""


def test_devices_of_the_file_s_own(tmp_path):
    (tmp_path / "mine.toml").write_text(TWICE_AN_A10)
    entry = {**A10, "device": "x1"}
    file = loaded(tmp_path, devices="mine.toml", instances=[entry, A100])
    twice = RooflineTimer(CATALOGUE.device("A10").assuming(compute_efficiency=0.96), LLAMA, "float16")
    step = (((1000, 0),), 0, 0)
    assert file.facts["a10"].timers[Role.PREFILL].step_seconds(*step) == pytest.approx(twice.step_seconds(*step))
    with pytest.raises(ConfigError, match=r"device 'x1' is not in the catalogue.*under the key `devices`"):
        loaded(tmp_path, instances=[entry, A100])
    with pytest.raises(ConfigError, match=r"cluster\.yaml: devices: device file 'gone\.toml' cannot be used"):
        loaded(tmp_path, devices="gone.toml")


# ---------------------------------------------------------------- models and profiles


def test_with_a_profile_truth_and_costs_are_the_profiles(tmp_path):
    facts = with_profile(tmp_path, SPEC).facts["a10"]
    assert facts.costs == SPEC.costs
    assert facts.timers[Role.PREFILL].step_seconds(((700, 0),), 0, 0) == SPEC.costs.prefill.seconds(700)
    # A decode instance computes prompts in mixed steps.
    mixed = SPEC.costs.mixed
    of_decode = facts.timers[Role.DECODE].step_seconds(((700, 0),), 0, 0)
    assert of_decode == pytest.approx(mixed.base + 700 * mixed.per_token)
    assert facts.kv_tokens == SPEC.kv_capacity_tokens


def test_a_measured_profile_needs_the_models_fingerprint(tmp_path):
    assert with_profile(tmp_path, MEASURED, fingerprint="c0ffee").facts["a10"].origin is Origin.MEASURED
    with pytest.raises(ConfigError, match=r"instances\[0\] \(a10\): .*write `fingerprint: c0ffee`"):
        with_profile(tmp_path, MEASURED)
    with pytest.raises(ConfigError, match=r"is of model 'c0ffee', and the instance has model 'beef'"):
        with_profile(tmp_path, MEASURED, fingerprint="beef")


def test_a_profile_of_another_model_or_dtype_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is of model 'LLaMA3-8B', and the instance has model 'Qwen2-7B'"):
        with_profile(tmp_path, SPEC, model="Qwen2-7B")
    with pytest.raises(ConfigError, match=r"is of dtype 'float16', and the instance has dtype 'bfloat16'"):
        with_profile(tmp_path, SPEC, dtype="bfloat16")


def test_a_profile_that_is_none_or_says_too_little(tmp_path):
    entry = {"id": "a10", "role": "prefill", "profile": "gone.json"}
    with pytest.raises(ConfigError, match=r"gone\.json' cannot be read"):
        loaded(tmp_path, instances=[entry, A100])
    (tmp_path / "gone.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not a profile"):
        loaded(tmp_path, instances=[entry, A100])
    unlimited = msgspec.structs.replace(SPEC, kv_capacity_tokens=None)
    with pytest.raises(ConfigError, match="give kv_tokens or kv_memory"):
        with_profile(tmp_path, unlimited)


CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
}


def test_a_model_from_its_configuration(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG))
    for model in ("tiny/config.json", "./tiny"):
        file = loaded(tmp_path, model=model)
        assert (file.model.spec.name, file.model.spec.layers, file.model.fingerprint) == ("tiny", 2, None)
    header = b'{"__metadata__":{}}'
    (tmp_path / "tiny" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert len(loaded(tmp_path, model="./tiny").model.fingerprint) == 16
    assert loaded(tmp_path, model="./tiny", fingerprint="f").model.fingerprint == "f"


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"model_type": "mamba"}', json.dumps({**CONFIG, "model_type": "opt"})]
)
def test_a_configuration_that_cannot_be_used(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cluster\.yaml: model is './config\.json', which cannot be used"):
        loaded(tmp_path, model="./config.json")


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kv": 1}, r"cluster\.yaml: unknown key 'kv'"),
        ({"link": {"gbit": 1}}, r"unknown key 'link\.gbit'"),
        ({"instances": [{**A10, "bugdet": 1}]}, r"unknown key 'instances\[0\]\.bugdet'; did you mean 'budget'\?"),
        ({"instances": [{**A10, "assume": {"overhead": 1}}]}, r"unknown key 'instances\[0\]\.assume\.overhead'"),
        ({"instances": [A10, {"id": "x"}]}, r"instances\[1\] is .* with at least id and role"),
        ({"instances": []}, r"instances is \[\]"),
        ({"instances": [{**A10, "role": "both"}]}, r"instances\[0\]\.role is 'both'.*write 'prefill' or 'decode'"),
        ({"instances": [{**A10, "slowdown": 0}]}, r"instances\[0\]\.slowdown is 0"),
        ({"link": {"gbit_per_s": -1}}, r"link\.gbit_per_s is -1"),
        ({"model": "LLaMA9-8B"}, r"model: model 'LLaMA9-8B' is not known; did you mean 'LLaMA3-8B'"),
        ({"split": 1.5}, r"split is 1\.5"),
        ({"balance": "even"}, r"balance is 'even'.*write 'stages' or 'finish'$"),
        ({"balance": None}, r"cluster\.yaml: balance is None.*write 'stages' or 'finish'$"),
        ({"dtype": "float32"}, r"instances\[0\] \(a10\): dtype 'float32' on A10"),
        ({"instances": [{**A10, "device": "A11"}]}, r"instances\[0\] \(a10\): device 'A11'.*did you mean 'A10'"),
        ({"instances": [{"id": "x", "role": "decode"}]}, r"instances\[0\] \(x\) has device None and profile None"),
        ({"instances": [{**A10, "profile": "p"}]}, r"instances\[0\] \(a10\) has device 'A10' and profile 'p'"),
        ({"instances": [{**A10, "kv_tokens": 99, "kv_memory": "1GB"}]}, r"kv_memory and kv_tokens all say"),
        ({"instances": [{**A10, "kv_memory": "1 pound"}]}, r"instances\[0\]\.kv_memory: '1 pound' is not a size"),
        ({"instances": [{**A10, "kv_tokens": 15}]}, r"holds 15 tokens, less than one block of 16"),
        ({"instances": [{**A10, "budget": 100}]}, r"instances\[0\]\.budget is 100 .* max_batch 256"),
        ({"instances": [{**A10, "budget": 8, "max_batch": 4}]}, r"instances\[0\] \(a10\): budget is 8"),
        ({"instances": [A10, {**A10}]}, r"the id 'a10' is empty or given 2 times"),
        ({"instances": [A10, {**A10, "count": 2}]}, "the id 'a10' is empty or given 2 times"),
        ({"instances": [{**A10, "count": 2}, {**A100, "id": "a10-1"}]}, r"the id 'a10-1' is empty or given 2 times"),
        ({"instances": [{**A10, "id": ""}]}, r"the id '' is empty"),
    ],
)  # fmt: skip
def test_the_place_of_what_is_wrong_is_named(tmp_path, keys, said):
    with pytest.raises(ConfigError, match=said):
        loaded(tmp_path, **keys)


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ({"policy": "dpp"}, r"systems\[0\]\.policy: policy 'dpp' is not known; did you mean 'dp'\?"),
        ({"policy": "dp"}, r"systems\[0\] \(s\): policy 'dp' serves .* a10 would stand idle"),
        ({"policy": "disagg", "roles": BOTH_DECODE}, r"'disagg' needs a prefill instance beside a10, a100"),
        ({"policy": "cronus", "roles": BOTH_DECODE}, r"'cronus' needs a prefill instance"),
        ({"policy": "cronus", "roles": {"a100": None}}, r"'cronus' needs a decode instance"),
        ({"policy": "fixed", "split": 0.5, "roles": BOTH_DECODE}, r"'fixed' with split 0\.5 needs a prefill"),
        ({"policy": "fixed", "split": "tuned", "roles": BOTH_DECODE}, r"'fixed' with split 'tuned' needs a prefill"),
        ({"policy": "cronus", "roles": {"a11": "decode"}}, r"systems\[0\]\.roles: there is no instance 'a11'"),
        ({"policy": "dp", "roles": BOTH_DECODE, "weights": {"a1": 1}}, r"systems\[0\]\.weights: .* no instance 'a1'"),
        ({"policy": "dp", "roles": BOTH_DECODE, "weights": {"a10": 1}}, r"the weight of a100 is missing"),
        ({"policy": "dp", "roles": BOTH_DECODE, "weights": {"a10": 0}}, r"systems\[0\]\.weights is"),
        ({"policy": "cronus", "weights": "tuned"}, r"systems\[0\]\.weights: only policy 'dp' reads it"),
        ({"policy": "cronus", "split": 0}, r"systems\[0\]\.split: only policy 'fixed' reads it"),
        ({"policy": "dp", "roles": BOTH_DECODE, "balance": "finish"}, r"systems\[0\]\.balance: only policy 'cronus'"),
        ({"policy": "cronus", "balance": None}, r"systems\[0\]\.balance is None.*write 'stages' or 'finish'$"),
    ],
)
def test_a_system_that_its_policy_cannot_serve_with(tmp_path, system, said):
    with pytest.raises(ConfigError, match=said):
        loaded(tmp_path, systems=[{"name": "s", **system}])


def test_every_problem_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        loaded(
            tmp_path,
            instances=[{"id": "x", "role": "decode"}, {**A10, "budget": 1}],
            systems=[{"name": "s", "policy": "y"}],
        )
    assert len(str(caught.value).splitlines()) == 3


def test_policies_that_the_roles_do_not_suit(tmp_path):
    file = loaded(tmp_path)
    for name, said in (("dp", "stand idle"), ("cronos", "did you mean 'cronus'")):
        with pytest.raises(ConfigError, match=said):
            file.systems([name])
    with pytest.raises(ConfigError, match="--policy"):
        file.systems()
    weighted = loaded(tmp_path, instances=[{**A10, "role": "decode", "weight": 1}, A100])
    with pytest.raises(ConfigError, match="the weight of a100 is missing"):
        weighted.systems(["dp"])


def test_too_little_memory_is_told_in_gigabytes(tmp_path):
    with pytest.raises(
        InfeasibleError, match=r"instances\[0\] \(a10\): LLaMA3-8B in float16 does not fit T4: .* 3\.32 GB more"
    ):
        loaded(tmp_path, instances=[{**A10, "device": "T4"}, A100])
    with pytest.raises(InfeasibleError, match=r"20\.00 GB, 13\.87 GB more than LLaMA3-8B in float16 leaves"):
        loaded(tmp_path, instances=[{**A10, "kv_memory": "20GB"}, A100])


def test_typed_names_the_place_inside_lists_and_mappings():
    data = {"model": "m", "instances": [A10], "systems": [{"name": "s", "policy": "dp", "roles": {"a10": "x"}}]}
    with pytest.raises(ConfigError, match=r"^f: systems\[0\]\.roles is \{'a10': 'x'\}.*write a mapping$"):
        typed(data, ClusterKeys, "f")
    with pytest.raises(ConfigError, match=r"^f: the file is \{\}.*at least model and instances$"):
        typed({}, ClusterKeys, "f")
