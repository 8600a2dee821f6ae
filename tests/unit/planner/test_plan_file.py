"""Plan files: what they turn into, and what is wrong with those that cannot be used."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from common.config.types import EmulateConfig, InstanceConfig
from common.errors import ConfigError
from services.planner.closed_forms.options import make_options
from services.planner.files.plan_file import load_plan_file
from services.planner.files.plan_keys import MachineKeys, Sizes, TemplateKeys
from services.planner.request import Limits, Objective, PlanRequest, Pool
from services.scheduling.profiles.profile import Origin, Subject, encode_profile
from services.simulator.hardware.catalogue import Catalogue, load_catalogue
from services.simulator.hardware.models import find_model
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec

CATALOGUE = load_catalogue()
EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
A10 = {"name": "a10", "device": "A10"}
MEASURED = msgspec.structs.replace(
    spec_profile(CATALOGUE.device("A10"), find_model("LLaMA3-8B"), "float16", 512),
    origin=Origin.MEASURED,
    subject=Subject("c0ffee", "float16"),
    device="the A10 here",
    threads=2,
)
TP1, TP2, PP2 = Strategy(), Strategy(2), Strategy(1, 2)


def loaded(folder: Path, *machines: dict[str, Any], catalogue: Catalogue = CATALOGUE, **keys: Any) -> PlanRequest:
    file = folder / "plan.yaml"
    made = {
        "model": "LLaMA3-8B",
        "workload": {"trace": "synthetic", "requests": 50},
        "machines": list(machines or [A10]),
    }
    file.write_text(yaml.safe_dump(made | keys))
    return load_plan_file(file, catalogue)


def pool_of(folder: Path, **keys: Any) -> Pool:
    (found,) = loaded(folder, A10 | keys, fingerprint="c0ffee").pools
    return found


def write(folder: Path, name: str, **changes: Any) -> str:
    (folder / name).write_bytes(encode_profile(msgspec.structs.replace(MEASURED, **changes)))
    return name


def measured_tp(tp: int) -> Subject:
    return Subject("c0ffee", "float16", tp=tp)


def problems(folder: Path, *machines: dict[str, Any], **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, *machines, **keys)
    return str(caught.value)


# ---------------------------------------------------------------- what a file turns into


def test_the_examples_can_be_planned_for():
    files = sorted(EXAMPLES.glob("plan-*.yaml"))
    assert files
    for file in files:
        assert make_options(load_plan_file(file, CATALOGUE)).servings()


def test_defaults(tmp_path):
    request = loaded(tmp_path)
    assert (request.objective, request.limits, request.rate_rps) == (Objective.THROUGHPUT, Limits(), None)
    assert (request.model_word, request.model.dtype) == ("LLaMA3-8B", "float16")
    (pool,) = request.pools
    assert (pool.name, pool.device, pool.machines, pool.devices, pool.device_price) == ("a10", "A10", 1, 1, None)
    assert pool.host_link == LinkSpec(12.5e9, 10e-6)
    template = pool.template
    assert (template.budget, template.max_batch, template.block_size, template.prefill_chunk) == (512, 256, 16, None)
    assert (template.device, template.dtype, template.profile, template.emulate) == (
        "cuda",
        None,
        None,
        EmulateConfig(),
    )


def test_limits_make_it_goodput(tmp_path):
    request = loaded(tmp_path, limits={"ttft_p99_s": 2}, rate=3, mesh_model="llama")
    assert (request.objective, request.limits) == (Objective.GOODPUT, Limits(2.0, None))
    assert (request.rate_rps, request.model_word) == (3.0, "llama")


def test_every_strategy_of_a_machine_has_facts_or_a_reason(tmp_path):
    large = pool_of(tmp_path, devices=4, device="T4")
    assert set(large.facts) | set(large.refused) == {
        Strategy(tp, pp) for tp in (1, 2, 4) for pp in (1, 2, 4) if tp * pp <= 4
    }
    assert not set(large.facts) & set(large.refused)
    assert large.devices == 4
    odd = pool_of(tmp_path, devices=3)
    assert set(odd.facts) == {TP1}
    assert "do not divide the 3 of a machine" in odd.refused[TP2].reason


def test_memory_that_is_short_is_told_for_each_device(tmp_path):
    # 16 GB of weights on a T4 of 15.8 GB; TP2 fits.
    t4 = pool_of(tmp_path, device="T4", devices=2)
    assert set(t4.facts) == {TP2, PP2}
    short = t4.refused[TP1].short_bytes
    assert short is not None
    assert "does not fit T4" in t4.refused[TP1].reason
    # With so much more memory the longest request has room, and only just.
    device = CATALOGUE.device("T4")
    memory = msgspec.structs.replace(device.memory_mib, value=device.memory_mib.value + short / 2**20)
    larger = msgspec.structs.replace(device, name="T4 more", aliases=(), memory_mib=memory)
    catalogue = msgspec.structs.replace(CATALOGUE, devices=(*CATALOGUE.devices, larger))
    request = loaded(tmp_path, {"name": "t4", "device": "T4 more"}, catalogue=catalogue)
    longest = max(each.prompt_tokens + each.output_tokens for each in request.workload.requests)
    assert longest <= request.pools[0].facts[TP1].kv_tokens < longest + 20


def test_a_measured_strategy_is_taken_from_its_profile_and_others_from_the_catalogue(tmp_path):
    file = write(tmp_path, "tp2.json", subject=measured_tp(2), kv_capacity_tokens=123_456)
    mixed = pool_of(tmp_path, devices=2, profiles=[file])
    assert mixed.facts[TP2].origin is Origin.MEASURED
    assert mixed.facts[TP2].kv_tokens == 123_456
    assert mixed.facts[TP1].origin is Origin.SPEC
    assert mixed.template.profile is None


def test_profiles_alone_know_nothing_of_other_strategies(tmp_path):
    file = write(tmp_path, "a10.json")
    (pool,) = loaded(tmp_path, {"name": "x", "profiles": [file], "devices": 2}, fingerprint="c0ffee").pools
    assert set(pool.facts) == {TP1}
    assert "no profile is of TP2" in pool.refused[TP2].reason
    assert (pool.device, pool.template.profile) == ("the A10 here", str(tmp_path / file))
    assert (pool.template.threads, pool.template.device) == (2, "cpu")


def test_what_is_emulated_is_the_profiles_slowdown_times_the_files_own(tmp_path):
    file = write(tmp_path, "slow.json", slowdown=2.0)
    plain, slower, all_told = (
        pool_of(tmp_path, profiles=[file], **keys)
        for keys in ({}, {"slowdown": 3.0}, {"instance": {"emulate": {"slowdown": 3.0}}})
    )
    found = [pool.facts[TP1].costs.prefill.base / MEASURED.costs.prefill.base for pool in (plain, slower, all_told)]
    assert found == pytest.approx([1.0, 3.0, 1.5])
    assert [pool.template.emulate.slowdown for pool in (plain, slower, all_told)] == [2.0, 6.0, 3.0]
    timed = [pool.facts[TP1].timers[pool.template.role].step_seconds((), 4, 400) for pool in (plain, slower)]
    assert timed[1] == pytest.approx(3 * timed[0])


def test_sizes_may_stand_beside_the_instance_or_in_it(tmp_path):
    sizes = {"budget": 300, "max_batch": 40, "block_size": 8, "kv_memory": "2GiB", "prefill_chunk": 128}
    beside, inside = pool_of(tmp_path, **sizes), pool_of(tmp_path, instance=sizes)
    assert beside.template == inside.template
    assert beside.facts[TP1].kv_tokens == inside.facts[TP1].kv_tokens == 2 * 2**30 // 131_072
    assert (beside.template.kv_memory, beside.template.prefill_chunk) == ("2GiB", 128)
    in_tokens = pool_of(tmp_path, kv_tokens=1000)
    assert in_tokens.template.kv_memory == 1000 * 131_072
    assert in_tokens.kv_bytes(TP1, loaded(tmp_path).model) == 1000 * 131_072


def test_the_template_says_what_mesh_yaml_is_to_say(tmp_path):
    said = {"device": "cpu", "dtype": "bfloat16", "order": "HND", "threads": 3, "cpu_affinity": [1], "weight": 2.0}
    template = pool_of(tmp_path, instance=said).template
    assert {key: msgspec.to_builtins(getattr(template, key)) for key in said} == said | {"cpu_affinity": (1,)}


def test_the_template_has_the_keys_of_mesh_yaml_but_for_those_that_are_planned():
    planned = {"id", "role", "host", "tp", "pp", "profile"}
    ours = {field.name: field.type for field in msgspec.structs.fields(TemplateKeys)}
    theirs = {field.name: field.type for field in msgspec.structs.fields(InstanceConfig)}
    assert set(ours) == set(theirs) - planned
    for name, kind in ours.items():
        assert kind == theirs[name] | msgspec.UnsetType, name
    beside = {field.name for field in msgspec.structs.fields(MachineKeys)} & set(ours)
    assert beside == {"device", *Sizes.__struct_fields__}


def test_a_device_without_bfloat16_may_compute_in_float16(tmp_path):
    t4 = {"name": "t4", "device": "T4", "devices": 2}
    assert "t4): T4 cannot compute in bfloat16" in problems(tmp_path, t4, A10, dtype="bfloat16")
    request = loaded(tmp_path, t4 | {"instance": {"dtype": "float16"}}, A10, dtype="bfloat16")
    assert [pool.template.dtype for pool in request.pools] == ["float16", None]
    assert request.pools[0].token_bytes(request.model) == 131_072


def test_prices_are_the_machines_own_or_of_a_list(tmp_path):
    own, listed, unknown = loaded(
        tmp_path,
        A10 | {"price": 6, "devices": 4},
        {"name": "b", "device": "A10"},
        {"name": "c", "device": "T4", "devices": 2},
        prices="oci",
    ).pools
    assert (own.device_price, listed.device_price, unknown.device_price) == (1.5, 2.0, None)


def test_a_trace_is_looked_for_beside_the_file(tmp_path):
    (tmp_path / "mine.csv").write_text("input_tokens,output_tokens\n7,3\n9,5\n")
    workload = loaded(tmp_path, workload={"trace": "mine.csv", "divide": 2}).workload
    assert [(each.prompt_tokens, each.output_tokens) for each in workload.requests] == [(4, 2), (5, 3)]


def test_lengths_in_figures(tmp_path):
    keys = {"prompt": {"mean": 400, "p99": 2000}, "output": {"mean": 50}, "requests": 300}
    workload = loaded(tmp_path, workload=keys).workload
    assert len(workload.requests) == 300
    assert sum(each.prompt_tokens for each in workload.requests) / 300 == pytest.approx(400, rel=0.01)


# ---------------------------------------------------------------- what is wrong with it


def test_all_mistakes_of_the_keys_are_told_at_once(tmp_path):
    found = problems(
        tmp_path,
        {"name": "a b", "utilisation": 0.5},
        {
            "name": "x",
            "device": "A10",
            "budget": 10,
            "max_batch": 20,
            "instance": {"max_batch": 30, "device": "cuda:1"},
        },
        {"name": "x", "device": "A10", "kv_memory": "lots", "kv_tokens": 5},
        workload={"trace": "synthetic", "prompt": {"mean": 10, "p50": 20}},
        objective="price",
    )
    for words in (
        "machines[0].name is 'a b'",
        "machines[0] (a b) has neither a device nor profiles",
        "machines[0]: assume and utilisation are about a catalogue device",
        "machines[1].max_batch is 20, and machines[1].instance.max_batch is 30; keep one",
        "machines[1].budget is 10 tokens per step with max_batch 20",
        "machines[1].instance.device is 'cuda:1'",
        "machines[2]: kv_memory and kv_tokens all say",
        "machines[2].kv_memory: 'lots' is not a size",
        "the name 'x' is given 2 times",
        "workload has both a trace and lengths",
        "workload.prompt.p50 is 20, above the mean",
    ):
        assert words in found, words
    assert all(line.startswith(str(tmp_path / "plan.yaml")) for line in found.splitlines())


def test_all_mistakes_of_what_the_keys_name_are_told_at_once(tmp_path):
    write(tmp_path, "other.json", subject=Subject("beef", "float16"))
    found = problems(
        tmp_path,
        {"name": "a", "device": "A11"},
        {"name": "b", "profiles": ["none.json"]},
        {"name": "c", "profiles": ["other.json"]},
        fingerprint="c0ffee",
        prices="ocy",
    )
    assert "machines[0] (a): device 'A11' is not in the catalogue; did you mean 'A10'?" in found
    assert "to add one" in found
    assert "machines[1] (b): profile" in found
    assert "none.json' cannot be read" in found
    assert "machines[2] (c): the profile is of model 'beef'" in found
    assert "prices: no price list 'ocy'; did you mean 'oci'?" in found


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"machines": []}, "machines"),
        ({"rate": -1}, "rate is -1"),
        ({"limits": {"ttft_s": 1}}, "unknown key 'limits.ttft_s'; did you mean 'ttft_p99_s'?"),
        ({"machines": [A10 | {"count": 0}]}, "machines[0].count is 0"),
        ({"machines": [A10 | {"slowdown": 0.5}]}, "machines[0].slowdown is 0.5"),
        ({"machines": [A10 | {"instance": {"role": "decode"}}]}, "unknown key 'machines[0].instance.role'"),
        ({"objective": "speed"}, "'throughput' or 'goodput' or 'price'"),
        ({"objective": "goodput"}, "objective goodput counts requests within limits, and there are none"),
        ({"model": "LLaMA3"}, "model 'LLaMA3' is not known; did you mean 'LLaMA3-8B'?"),
        ({"workload": {"trace": "none"}}, "workload: no trace 'none'"),
        ({"workload": {"prompt": {"mean": 5}}}, "workload needs a `trace`"),
        ({"devices": "none.toml"}, "devices: "),
        ({"budget": 5}, "machines[0] (a10) has no price, and a budget of 5 needs one of every machine"),
        ({"objective": "price", "rate": 1, "prices": "seeweb"}, "for the list 'seeweb' has none of A10"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_a_remedy(tmp_path, keys, words):
    assert words in problems(tmp_path, **keys)


@pytest.mark.parametrize(
    ("second", "keys", "words"),
    [
        ({}, {}, "are both of TP1; keep one"),
        ({"subject": measured_tp(2), "slowdown": 2.0}, {}, "measured with slowdown 1.0, 2.0"),
        ({"subject": measured_tp(2), "threads": 4}, {}, "measured with threads 2, 4"),
        ({"subject": measured_tp(2)}, {"instance": {"threads": 1}}, "instance.threads is 1"),
        ({"subject": measured_tp(2)}, {"slowdown": 2, "instance": {"emulate": {"slowdown": 3}}}, "keep one"),
    ],
)
def test_profiles_that_contradict_each_other_or_the_keys(tmp_path, second, keys, words):
    files = [write(tmp_path, "one.json"), write(tmp_path, "two.json", **second)]
    found = problems(tmp_path, A10 | {"devices": 2, "profiles": files} | keys, fingerprint="c0ffee")
    assert words in found
