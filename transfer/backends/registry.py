"""Names of backends. Nothing is imported before it is asked for.

A package of somebody else's adds one by an entry point of the group `pdmesh.transfer`, from its scheme to its class.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points

from common.config.addresses import is_loopback
from common.config.keys import nearest
from common.config.types import TransferConfig
from common.errors import ConfigError
from transfer.backends.base import Backend

GROUP = "pdmesh.transfer"

BACKENDS = {
    "inproc": "transfer.backends.inproc:InprocBackend",
    "shm": "transfer.backends.shm.backend:ShmBackend",
    "tcp": "transfer.backends.tcp:TcpBackend",
}
"""Scheme → "module:Class" of those that come with pdmesh."""

Loaders = Mapping[str, Callable[[], type[Backend]]]


def installed_backends() -> Loaders:
    """Every scheme that can be named here, and how to get its class. Ours win over entry points of the same name."""
    ours = {scheme: lambda path=path: _import(path) for scheme, path in BACKENDS.items()}
    return {point.name: point.load for point in entry_points(group=GROUP)} | ours


def build_backends(config: TransferConfig, loaders: Loaders) -> tuple[Backend, ...]:
    """The backends that mesh.yaml names, in its order.

    Raises ConfigError for one that is not installed or not usable here, and for one that would let strangers in.
    """
    return tuple(_build(scheme, config, loaders) for scheme in config.backends)


def _build(scheme: str, config: TransferConfig, loaders: Loaders) -> Backend:
    if scheme not in loaders:
        raise ConfigError(f"transfer.backends: {scheme!r} is not installed; {nearest(scheme, sorted(loaders))}")
    try:
        backend = loaders[scheme]().from_config(config)
    except (ImportError, OSError) as error:
        raise ConfigError(f"transfer.backends: {scheme!r} cannot be used here: {error}") from error
    traits = backend.traits
    if not (traits.same_host or traits.authenticated or config.trusted_network or is_loopback(config.host)):
        raise ConfigError(
            f"transfer.host is {config.host!r}, which other machines may reach, and the backend {scheme!r} does not "
            "authenticate its peers: use one that does (tcp with transfer.tls), or set transfer.trusted_network: true"
        )
    return backend


def _import(path: str) -> type[Backend]:
    module, _, name = path.partition(":")
    found: type[Backend] = getattr(import_module(module), name)
    return found
