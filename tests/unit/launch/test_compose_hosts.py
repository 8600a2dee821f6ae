"""Which machine runs what, and what it publishes."""

import msgspec
import pytest

from common.config.types import GatewayConfig, InstanceConfig, MeshConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.launch.compose_hosts import control_address, plan_hosts, published_control, published_http


def mesh(*hosts: str | None, control: str = "tcp://127.0.0.1:5700", http: str = "127.0.0.1:8000") -> MeshConfig:
    """A prefill instance on the first host, decode instances on the others."""
    roles = [Role.PREFILL, *[Role.DECODE] * (len(hosts) - 1)]
    instances = tuple(
        InstanceConfig(id=InstanceId(f"i{index}"), role=role, host=host)
        for index, (role, host) in enumerate(zip(roles, hosts, strict=True))
    )
    return MeshConfig(gateway=GatewayConfig(control=control, http=http), instances=instances)


def planned(config: MeshConfig, gateway_host: str | None = None) -> list[tuple[str | None, list[str], bool]]:
    return [
        (host.name, [instance.id for instance in host.instances], host.has_gateway)
        for host in plan_hosts(config, gateway_host)
    ]


@pytest.mark.parametrize(
    ("config", "gateway_host", "expected"),
    [
        (mesh(None, None), None, [(None, ["i0", "i1"], True)]),
        (mesh("a", "a"), None, [("a", ["i0", "i1"], True)]),
        (mesh("a", "b", "a"), None, [("a", ["i0", "i2"], True), ("b", ["i1"], False)]),
        (mesh("a", "b"), "b", [("b", ["i1"], True), ("a", ["i0"], False)]),
        (mesh("a", "b"), "front", [("front", [], True), ("a", ["i0"], False), ("b", ["i1"], False)]),
        (mesh("a", None), "g", [("g", ["i1"], True), ("a", ["i0"], False)]),
        (mesh("a", None, control="tcp://10.0.0.1:5700"), None, [("10.0.0.1", ["i1"], True), ("a", ["i0"], False)]),
        (mesh("a", "b", control="tcp://b:5700"), None, [("b", ["i1"], True), ("a", ["i0"], False)]),
        (mesh("a", "b", control="tcp://0.0.0.0:5700"), None, [("a", ["i0"], True), ("b", ["i1"], False)]),
        (mesh("a", "b", control="tcp://*:5700"), None, [("a", ["i0"], True), ("b", ["i1"], False)]),
        (mesh(None, None, control="ipc:///tmp/x"), None, [(None, ["i0", "i1"], True)]),
    ],
)
def test_who_is_where(config: MeshConfig, gateway_host: str | None, expected: object) -> None:
    assert planned(config, gateway_host) == expected


def test_the_gateways_machine_needs_a_name_where_others_must_reach_it() -> None:
    with pytest.raises(ConfigError, match=r"i1 run on the gateway's machine.* beside a: .*--gateway-host NAME"):
        plan_hosts(mesh("a", None), None)


@pytest.mark.parametrize("name", ["", "a b", "../etc", "-x", "a/b", "a\nb"])
def test_a_name_that_leads_nowhere(name: str) -> None:
    with pytest.raises(ConfigError, match="not a machine's name"):
        plan_hosts(mesh(name, "b"), None)


@pytest.mark.parametrize(
    ("http", "port"),
    [
        ("127.0.0.1:8000", "127.0.0.1:8000:8000"),
        ("localhost:9000", "127.0.0.1:9000:8000"),
        ("0.0.0.0:9000", "9000:8000"),
        ("127.0.0.1:0", "127.0.0.1::8000"),
        ("0.0.0.0:0", "8000"),
        ("[::1]:9000", "[::1]:9000:8000"),
        ("[::]:9000", "9000:8000"),
    ],
)
def test_the_api_is_published_where_it_would_have_listened(http: str, port: str) -> None:
    assert published_http(mesh(None, None, http=http)) == port


def test_a_port_is_not_published_at_a_name() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.http has the host 'box1'"):
        published_http(mesh(None, None, http="box1:8000"))


@pytest.mark.parametrize(
    ("control", "port", "address"),
    [
        ("tcp://127.0.0.1:5700", "5700:5700", "tcp://g:5700"),
        ("tcp://127.0.0.1:0", "5700:5700", "tcp://g:5700"),
        ("ipc:///tmp/x", "5700:5700", "tcp://g:5700"),
        ("tcp://g:5800", "5800:5700", "tcp://g:5800"),
        ("tcp://10.0.0.1:5800", "10.0.0.1:5800:5700", "tcp://g:5800"),
        ("tcp://[fd00::1]:5800", "[fd00::1]:5800:5700", "tcp://g:5800"),
    ],
)
def test_the_control_port_is_published_for_the_other_machines(control: str, port: str, address: str) -> None:
    config = mesh("g", "b", control=control)
    assert (published_control(config), control_address(config, "g")) == (port, address)


def test_an_ipv6_address_may_be_the_gateways() -> None:
    assert control_address(mesh("fd00::1", "b"), "fd00::1") == "tcp://[fd00::1]:5700"


def test_every_instance_is_on_one_machine_and_there_is_one_gateway() -> None:
    config = mesh("a", "b", "c", "a", "b")
    hosts = plan_hosts(config, "z")
    assert sorted(instance.id for host in hosts for instance in host.instances) == ["i0", "i1", "i2", "i3", "i4"]
    assert [host.has_gateway for host in hosts] == [True, False, False, False]
    assert all(msgspec.structs.asdict(host)["name"] for host in hosts)
