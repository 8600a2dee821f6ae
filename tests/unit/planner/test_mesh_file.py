"""The mesh.yaml of a plan: what `pdmesh up` reads is what was planned."""

from pathlib import Path

import msgspec
import pytest
import yaml
from planning_case import MODEL, TP2, aggregated, group, pairs, plan, pool, request

from common.config.load import load_mesh
from common.config.sizes import parse_size
from common.config.types import EmulateConfig, InstanceConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.kv.layout import KVOrder
from common.messages.control import Role
from services.planner.files.mesh_file import hosts_of, mesh_of, mesh_text
from services.planner.plan import Serving


def loaded(text: str, folder: Path):
    file = folder / "mesh.yaml"
    file.write_text(text)
    return load_mesh(file, {}, {})


@pytest.mark.parametrize("serving", [Serving.DISAGGREGATED, Serving.CRONUS])
def test_what_is_written_is_what_is_loaded(serving, tmp_path):
    config = mesh_of(pairs(serving, prefill=5, decode=2), request())
    text = mesh_text(config, ["planned", "", "by hand"])
    assert text.startswith("# planned\n#\n# by hand\nmodel: smollm2\ndtype: float16\n")
    assert loaded(text, tmp_path) == config
    assert config.policy == {Serving.DISAGGREGATED: "disagg", Serving.CRONUS: "cronus"}[serving]
    assert [(each.id, each.role, each.host, each.device) for each in config.instances] == [
        ("a10-p0", Role.PREFILL, "a10-0", "cuda:0"),
        ("a10-p1", Role.PREFILL, "a10-0", "cuda:1"),
        ("a10-p2", Role.PREFILL, "a10-0", "cuda:2"),
        ("a10-p3", Role.PREFILL, "a10-0", "cuda:3"),
        ("a10-p4", Role.PREFILL, "a10-1", "cuda:0"),
        ("l4-d0", Role.DECODE, "l4-0", "cuda:0"),
        ("l4-d1", Role.DECODE, "l4-0", "cuda:1"),
    ]
    assert hosts_of(config) == ("a10-0", "a10-1", "l4-0")


def test_whole_requests_are_spread_by_capacity(tmp_path):
    config = mesh_of(aggregated(), request())
    assert config.policy == "capacity"
    assert all(each.role is Role.DECODE for each in config.instances)
    assert loaded(mesh_text(config, []), tmp_path) == config


def test_every_key_of_the_template_is_kept_and_the_kv_is_what_was_planned_with(tmp_path):
    template = InstanceConfig(
        id=InstanceId("x"),
        role=Role.DECODE,
        device="cpu",
        dtype="bfloat16",
        threads=1,
        cpu_affinity=(0,),
        block_size=32,
        order=KVOrder.HND,
        max_batch=8,
        budget=64,
        profile="profiles/low.json",
        emulate=EmulateConfig(slowdown=3.0),
    )
    config = mesh_of(aggregated(1), request(pool("a10", template=template)))
    (instance,) = loaded(mesh_text(config, []), tmp_path).instances
    kv_memory = parse_size(instance.kv_memory)
    assert kv_memory // MODEL.token_bytes == pool("a10").facts[TP2].kv_tokens
    assert instance == msgspec.structs.replace(template, id="a10-d0", kv_memory=instance.kv_memory)


def test_a_size_that_says_the_same_keeps_its_words():
    size = pool("a10").facts[TP2].kv_tokens * MODEL.token_bytes
    wordy = msgspec.structs.replace(pool("a10").template, kv_memory=f"{size + 1}B")
    (instance,) = mesh_of(aggregated(1), request(pool("a10", template=wordy))).instances
    assert instance.kv_memory == f"{size + 1}B"


def test_machines_that_are_this_machine_have_no_names():
    cpus = (
        pool(name, template=msgspec.structs.replace(pool(name).template, device="cpu", profile=f"{name}.json"))
        for name in ("a10", "l4")
    )
    config = mesh_of(pairs(), request(*cpus))
    assert {(each.host, each.device, each.self_profile) for each in config.instances} == {(None, "cpu", False)}


def test_instances_measure_themselves_where_no_profile_says_what_they_cost():
    assert all(each.self_profile for each in mesh_of(pairs(), request()).instances)


def test_radeons_are_numbered_as_such():
    rocm = pool("a10", template=msgspec.structs.replace(pool("a10").template, device="rocm"))
    assert [each.device for each in mesh_of(aggregated(2), request(rocm)).instances] == ["rocm:0", "rocm:1"]


def test_a_plan_that_needs_ranks_is_written_and_then_refused(tmp_path):
    ranks = plan(Serving.AGGREGATED, group("a10", Role.DECODE, 2, TP2))
    text = mesh_text(mesh_of(ranks, request()), [])
    assert [each["device"] for each in yaml.safe_load(text)["instances"]] == ["cuda:0", "cuda:2"]
    with pytest.raises(ConfigError, match="needs ranks"):
        loaded(text, tmp_path)
