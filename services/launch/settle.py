"""From a configuration to one that local processes can start from: counts, threads and ports decided."""

import errno
import socket
from collections.abc import Callable

import msgspec

from common.config.addresses import format_host_port, parse_control, parse_http
from common.config.sizes import parse_size
from common.config.types import InstanceConfig, MeshConfig
from common.errors import ConfigError
from common.hardware import threads_for
from common.ids import InstanceId
from common.messages.control import Role
from services.launch.errors import LaunchError

PortFinder = Callable[[str, int], int]
"""(host, port) → a free port on host: `port` itself unless it is 0. Raises LaunchError where it is taken."""


def find_port(host: str, port: int) -> int:
    """A PortFinder that asks the system. The port is free now; nothing keeps another process from taking it."""
    try:
        return _bind(host, port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            way_out = (
                "end what uses it, or choose another port (gateway.http or --port, gateway.control), 0 for a free one"
            )
        else:
            way_out = "gateway.http and gateway.control need an address of this machine, such as 127.0.0.1"
        raise LaunchError(f"cannot listen at {format_host_port(host, port)}: {error}; {way_out}") from error


def _bind(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def settle(config: MeshConfig, num_cores: int, find_port: PortFinder) -> MeshConfig:
    """`config` with every port and every instance's threads decided. Raises LaunchError where a port is taken."""
    host, port = parse_http(config.gateway.http)
    http = format_host_port(host, find_port(host, port))
    control = config.gateway.control
    if (address := parse_control(control)) is not None:
        control = f"tcp://{format_host_port(address[0], find_port(*address))}"
    return msgspec.structs.replace(
        config,
        gateway=msgspec.structs.replace(config.gateway, http=http, control=control),
        instances=tuple(
            msgspec.structs.replace(instance, threads=threads_for(instance, config.instances, num_cores))
            for instance in config.instances
        ),
    )


def check_memory(config: MeshConfig, memory_bytes: int) -> None:
    """Raise ConfigError for an instance whose KV cache alone is more than this machine's memory.

    The system would let it start, and then kill it or a process of somebody else.
    """
    for instance in config.instances:
        if instance.device == "cpu" and parse_size(instance.kv_memory) > memory_bytes:
            raise ConfigError(
                f"kv_memory of {instance.id} is {instance.kv_memory!r}, but this machine has "
                f"{memory_bytes / 2**30:.1f}GiB of memory; lower it"
            )


def with_counts(config: MeshConfig, prefill: int | None, decode: int | None) -> MeshConfig:
    """`config` with so many instances of each role (None: as many as it has).

    The first ones stay; more are made like the first of their role, without its pinning, which is one instance's.
    """
    instances = (
        *_counted(config.instances, Role.PREFILL, prefill),
        *_counted(config.instances, Role.DECODE, decode),
    )
    return msgspec.structs.replace(config, instances=instances)


def _counted(instances: tuple[InstanceConfig, ...], role: Role, count: int | None) -> tuple[InstanceConfig, ...]:
    present = tuple(instance for instance in instances if instance.role is role)
    if count is None:
        return present
    taken = {instance.id for instance in instances}
    names = (name for number in range(count + len(taken)) if (name := f"{role.value[0]}{number}") not in taken)
    pattern = present[0] if present else InstanceConfig(id=InstanceId(""), role=role)
    pattern = msgspec.structs.replace(pattern, cpu_affinity=None, threads=None)
    made = [msgspec.structs.replace(pattern, id=InstanceId(next(names))) for _ in range(max(0, count - len(present)))]
    return (*present[:count], *made)
