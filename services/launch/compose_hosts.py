"""Which machine runs what, and by which address the others reach the gateway."""

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from common.config.addresses import format_host_port, is_loopback, parse_control, parse_http
from common.config.types import InstanceConfig, MeshConfig
from common.errors import ConfigError

HTTP_PORT = 8000
CONTROL_PORT = 5700
"""In the gateway's container, whatever they are outside."""

Name = TypeVar("Name", str, str | None)

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")


class HostPlan(msgspec.Struct, frozen=True):
    """One machine and what runs there."""

    name: str | None
    """None: the only machine, which nobody has to reach by name."""
    instances: tuple[InstanceConfig, ...]
    has_gateway: bool


def plan_hosts(config: MeshConfig, gateway_host: str | None) -> tuple[HostPlan, ...]:
    """The machines, the gateway's first.

    That is `gateway_host`, else the host in gateway.control that others can reach, else the first instance's.
    Instances without a host are there.  Raises ConfigError where that machine needs a name and has none, or where a
    name cannot be one.
    """
    given = _given_gateway_host(config, gateway_host)
    named = [instance.host for instance in config.instances if instance.host is not None]
    if given is None and named and len(named) < len(config.instances):
        lacking = ", ".join(instance.id for instance in config.instances if instance.host is None)
        raise ConfigError(
            f"{lacking} run on the gateway's machine, which has no name beside {', '.join(_unique(named))}: "
            "say which it is with --gateway-host NAME, by which the others reach it"
        )
    first = given or next(iter(named), None)
    names = _unique([first, *named])
    for name in names:
        _check_name(name)
    return tuple(
        HostPlan(name, tuple(each for each in config.instances if (each.host or first) == name), name == first)
        for name in names
    )


def published_http(config: MeshConfig) -> str:
    """gateway.http as a published port: only where it listened, it listens again. Raises ConfigError."""
    host, port = parse_http(config.gateway.http)
    return _published("gateway.http", host, port, HTTP_PORT)


def published_control(config: MeshConfig) -> str:
    """gateway.control as a published port, on every address where it names none that others reach."""
    address = parse_control(config.gateway.control)
    host = address[0] if address is not None and not is_loopback(address[0]) and _is_address(address[0]) else "0.0.0.0"
    return _published("gateway.control", host, control_port(config), CONTROL_PORT)


def control_port(config: MeshConfig) -> int:
    """The port where the other machines reach gateway.control."""
    address = parse_control(config.gateway.control)
    return address[1] or CONTROL_PORT if address is not None else CONTROL_PORT


def control_address(config: MeshConfig, gateway_host: str) -> str:
    """Where instances on other machines join."""
    return f"tcp://{format_host_port(gateway_host, control_port(config))}"


def _given_gateway_host(config: MeshConfig, gateway_host: str | None) -> str | None:
    address = parse_control(config.gateway.control)
    if gateway_host is not None or address is None:
        return gateway_host
    return None if is_loopback(address[0]) or _is_everywhere(address[0]) else address[0]


def _published(key: str, host: str, port: int, inside: int) -> str:
    host = "127.0.0.1" if host == "localhost" else host
    if not _is_address(host):
        raise ConfigError(f"{key} has the host {host!r}, and a port is published at an address: give that instead")
    outside = "" if port == 0 else str(port)
    if _is_everywhere(host):
        return f"{outside}:{inside}".removeprefix(":")
    return f"[{host}]:{outside}:{inside}" if ":" in host else f"{host}:{outside}:{inside}"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_everywhere(host: str) -> bool:
    return host == "*" or (_is_address(host) and ip_address(host).is_unspecified)


def _check_name(name: str | None) -> None:
    if name is not None and not _HOST.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a machine's name: others connect to it, so give the name or address that they use"
        )


def _unique(names: Iterable[Name]) -> list[Name]:
    return list(dict.fromkeys(names))
