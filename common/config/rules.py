"""What a mesh.yaml must satisfy beyond the types of its keys."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address

from common.config.addresses import check_collector, is_loopback, parse_control, parse_http
from common.config.sizes import parse_size
from common.config.types import GatewayConfig, InstanceConfig, MeshConfig, TransferConfig
from common.errors import ConfigError
from common.messages.control import Role

_ID = re.compile(r"[A-Za-z0-9_.-]+")
_DEVICE = re.compile(r"cpu|(cuda|rocm)(:\d+)?")
RESERVED_IDS = frozenset({"gateway", "-", ".", ".."})
"""Names that mean something else in logs, in the placement header, or as a folder."""


def problems(config: MeshConfig) -> Iterator[str]:
    """A sentence for everything that keeps `config` from being used: key, value, what is allowed, what to do."""
    yield from _of_gateway(config.gateway)
    yield from _of_transfer(config.transfer)
    yield from _of_tracing(config)
    for index, instance in enumerate(config.instances):
        yield from _of_instance(f"instances[{index}]", instance)
    yield from _of_mesh(config)


def id_problem(name: str) -> str | None:
    """Why `name` cannot be an instance's id; None: it can."""
    if _ID.fullmatch(name) and name not in RESERVED_IDS:
        return None
    return f"use letters, digits, '_', '.' and '-', and not {sorted(RESERVED_IDS)}"


def _of_gateway(gateway: GatewayConfig) -> Iterator[str]:
    yield from _refusal("gateway.http", lambda: parse_http(gateway.http))
    yield from _refusal("gateway.control", lambda: parse_control(gateway.control))
    if gateway.control_keys is None and not gateway.insecure and _is_open(gateway.control):
        yield (
            f"gateway.control is {gateway.control!r}, which other machines may reach, and without keys anybody there "
            "may join and read prompts: run `pdmesh keys init --config FILE --out keys` and set "
            "gateway.control_keys: keys, or set gateway.insecure: true if nobody else is on that network"
        )
    if _same_port(gateway):
        yield (
            f"gateway.control is {gateway.control!r}, on the port of gateway.http {gateway.http!r}: "
            "two doors need two ports; choose another, or 0 for a free one"
        )
    if gateway.lease_s < 2 * gateway.heartbeat_s:
        yield (
            f"gateway.lease_s is {gateway.lease_s!r} with gateway.heartbeat_s {gateway.heartbeat_s!r}: a lease must "
            "outlast two heartbeats, or one late message loses an instance; raise lease_s or lower heartbeat_s"
        )


def _is_open(control: str) -> bool:
    try:
        address = parse_control(control)
    except ConfigError:
        return False  # told by another rule
    return address is not None and not is_loopback(address[0])


def _same_port(gateway: GatewayConfig) -> bool:
    try:
        control = parse_control(gateway.control)
        port = parse_http(gateway.http)[1]
    except ConfigError:
        return False  # told by another rule
    return control is not None and control[1] == port != 0


def _of_tracing(config: MeshConfig) -> Iterator[str]:
    if (otlp := config.tracing.otlp) is None:
        return
    yield from _refusal("tracing.otlp", lambda: check_collector(otlp))
    if config.gateway.traces == 0:
        yield f"gateway.traces is 0 with tracing.otlp {otlp!r}: what is sent is made of kept traces; keep some"


def _of_transfer(transfer: TransferConfig) -> Iterator[str]:
    host = transfer.host
    if not host.strip() or "/" in host or re.fullmatch(r"[^:]*:\d*", host):
        yield f"transfer.host is {host!r}: give a host or an address alone, without scheme or port, such as '127.0.0.1'"
        return
    if _is_wildcard(host):
        yield (
            f"transfer.host is {host!r}, which decode instances are told as it stands and cannot connect to: write the "
            "address or the name by which other machines reach this one, such as '10.0.0.7', or '127.0.0.1' where "
            "everything runs on this one"
        )
    backends = transfer.backends
    if not backends or len(set(backends)) < len(backends):
        yield f"transfer.backends is {list(backends)!r}: name each backend once, and at least one, such as [tcp]"
    if "tcp" in backends and not (is_loopback(host) or transfer.trusted_network or transfer.tls):
        yield (
            f"transfer.host is {host!r}, which other machines may reach, and tcp without TLS lets anybody in: give "
            "transfer.tls certificates, or set transfer.trusted_network: true if nobody else is on that network"
        )


def _is_wildcard(host: str) -> bool:
    """Whether it stands for every address of a machine, in whatever spelling."""
    bare = host.strip().strip("[]")
    try:
        address = ip_address(bare)
    except ValueError:
        return bare in ("*", "0")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_unspecified


def _of_instance(path: str, instance: InstanceConfig) -> Iterator[str]:
    if (problem := id_problem(instance.id)) is not None:
        yield f"{path}.id is {instance.id!r}: {problem}"
    if not _DEVICE.fullmatch(instance.device):
        yield f"{path}.device is {instance.device!r}: write 'cpu', 'cuda', 'cuda:N', 'rocm' or 'rocm:N'"
    if (ranks := instance.tp * instance.pp) > 1:
        yield (
            f"{path} has tp {instance.tp} and pp {instance.pp} and so needs ranks: instances that span {ranks} devices "
            "can be planned and simulated, but not run yet; use a plan with tp 1 and pp 1"
        )
    yield from _refusal(f"{path}.kv_memory", lambda: parse_size(instance.kv_memory))
    cores = instance.cpu_affinity
    if cores is not None and (not cores or len(set(cores)) < len(cores) or min(cores) < 0):
        yield f"{path}.cpu_affinity is {list(cores)!r}: list each core once, from 0, or write null for no pinning"
    if instance.profile is not None and instance.self_profile:
        yield (
            f"{path}.profile is {instance.profile!r} with {path}.self_profile true: costs are read or measured, "
            "not both; drop one"
        )
    if instance.role is Role.DECODE and instance.budget < instance.max_batch:
        yield (
            f"{path}.budget is {instance.budget!r} tokens per step with max_batch {instance.max_batch!r}: each decode "
            "takes one token, so the budget must be at least max_batch; raise budget or lower max_batch"
        )


def _of_mesh(config: MeshConfig) -> Iterator[str]:
    counts = Counter(instance.id for instance in config.instances)
    for name, count in counts.items():
        if count > 1:
            yield f"instances: the id {name!r} is given {count} times; ids must be unique"
    roles = {instance.role for instance in config.instances}
    if Role.DECODE not in roles:
        yield "instances: there is no decode instance, and only one such serves a request; add one with role: decode"
    if Role.PREFILL not in roles:
        yield from _without_prefill(config)


def _without_prefill(config: MeshConfig) -> Iterator[str]:
    if config.policy == "fixed" and config.split != 0:
        yield (
            f"split is {config.split!r}, but there is no prefill instance to compute that part of a prompt; "
            "add an instance with role: prefill, or set split: 0"
        )
    if config.policy == "disagg":
        yield "policy is 'disagg', but there is no prefill instance; add one with role: prefill, or take policy: dp"


def _refusal(key: str, parse: Callable[[], object]) -> Iterator[str]:
    try:
        parse()
    except ConfigError as error:
        yield f"{key}: {error}"
