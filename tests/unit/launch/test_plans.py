"""The pure parts of the launch."""

from pathlib import Path

import msgspec
import pytest

from common.config.types import GatewayConfig, InstanceConfig, MeshConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.launch import restart
from services.launch.commands import plan_processes
from services.launch.errors import LaunchError
from services.launch.process import ended
from services.launch.settle import check_memory, find_port, settle, with_counts


def ids(config):
    return [instance.id for instance in config.instances]


def test_ports_and_threads_are_settled():
    asked = []

    def find_port(host, port):
        asked.append((host, port))
        return port or 4000 + len(asked)

    config = MeshConfig(gateway=GatewayConfig(http="0.0.0.0:0", control="tcp://127.0.0.1:0"))
    settled = settle(config, 5, find_port)
    assert (settled.gateway.http, settled.gateway.control) == ("0.0.0.0:4001", "tcp://127.0.0.1:4002")
    assert [instance.threads for instance in settled.instances] == [3, 2]
    assert settle(settled, 5, find_port) == settled


def test_an_ipc_endpoint_needs_no_port():
    config = MeshConfig(gateway=GatewayConfig(control="ipc:///tmp/x"))
    assert settle(config, 1, lambda _host, port: port).gateway.control == "ipc:///tmp/x"


@pytest.mark.parametrize(
    ("prefill", "decode", "expected"),
    [
        (None, None, ["p0", "d0"]),
        (2, 3, ["p0", "p1", "d0", "d1", "d2"]),
        (0, 1, ["d0"]),
    ],
)
def test_counts_of_the_default_mesh(prefill, decode, expected):
    assert ids(with_counts(MeshConfig(), prefill, decode)) == expected


def test_added_instances_are_like_the_first_of_their_role_but_not_pinned_with_it():
    first = InstanceConfig(
        id=InstanceId("d1"), role=Role.DECODE, max_batch=7, cpu_affinity=(3,), threads=1, block_size=8
    )
    config = MeshConfig(instances=(first,), split=0)
    grown = with_counts(config, None, 3)
    assert ids(grown) == ["d1", "d0", "d2"]
    assert grown.instances[0] == first
    assert [(i.max_batch, i.block_size, i.cpu_affinity, i.threads) for i in grown.instances[1:]] == [
        (7, 8, None, None),
        (7, 8, None, None),
    ]
    assert ids(with_counts(config, 1, 1)) == ["p0", "d1"]


def test_commands_and_environments():
    config = settle(MeshConfig(), 4, lambda _host, port: port)
    plans = plan_processes(
        config,
        program=("pdmesh",),
        config_file=Path("/c"),
        model_folder=Path("/m"),
        parent_fd=9,
        environ={"HOME": "/h", "PDMESH_MODEL": "x", "PDMESH_CACHE": "/cache", "OMP_NUM_THREADS": "64"},
    )
    common = ("--config", "/c", "--model-folder", "/m", "--parent-fd", "9")
    assert [plan.arguments for plan in plans] == [
        ("pdmesh", "gateway", *common),
        ("pdmesh", "prefill", *common, "--instance", "p0"),
        ("pdmesh", "decode", *common, "--instance", "d0"),
    ]
    assert [plan.environ["OMP_NUM_THREADS"] for plan in plans] == ["1", "2", "2"]
    assert all(plan.environ["PDMESH_CACHE"] == "/cache" for plan in plans)
    assert not any("PDMESH_MODEL" in plan.environ for plan in plans), "the file already says it"


def test_pauses_double_to_a_bound_and_a_steady_run_starts_over():
    crashes, pauses = 0, []
    for _ in range(9):
        crashes = restart.crashes_in_a_row(crashes, ran_for_s=1.0)
        pauses.append(restart.pause_s(crashes))
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0])
    assert restart.crashes_in_a_row(9, ran_for_s=restart.STEADY_S) == 1


def test_the_config_that_children_read_is_the_settled_one():
    config = settle(MeshConfig(split=1.0), 2, lambda _host, port: port)
    assert msgspec.convert(msgspec.to_builtins(config), MeshConfig) == config


def test_a_kv_cache_larger_than_the_machine_is_refused():
    config = MeshConfig(instances=(InstanceConfig(id=InstanceId("d0"), role=Role.DECODE, kv_memory="100GiB"),), split=0)
    check_memory(config, 100 * 2**30)
    with pytest.raises(ConfigError, match=r"kv_memory of d0 is '100GiB', but this machine has 24.0GiB"):
        check_memory(config, 24 * 2**30)


def test_the_memory_of_a_device_is_not_that_of_the_machine():
    instance = InstanceConfig(id=InstanceId("d0"), role=Role.DECODE, device="cuda", kv_memory="100GiB")
    check_memory(MeshConfig(instances=(instance,), split=0), 1 << 30)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_not_told_to_change_its_port(host):
    with pytest.raises(LaunchError, match="need an address of this machine"):
        find_port(host, 0)


@pytest.mark.parametrize(
    ("code", "words"),
    [(3, "ended with code 3"), (-11, "was ended by SIGSEGV"), (-250, "was ended by signal 250")],
)
def test_how_a_process_ended_is_told_in_words(code, words):
    assert ended(code) == words


def test_a_killed_process_makes_think_of_memory():
    assert "lower kv_memory" in ended(-9)
