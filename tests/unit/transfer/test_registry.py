from importlib.metadata import EntryPoint

import pytest

from common.config.types import TransferConfig
from common.errors import ConfigError
from transfer.backends.base import Backend, BackendTraits
from transfer.backends.inproc import InprocBackend
from transfer.backends.registry import BACKENDS, build_backends, installed_backends


class Open(InprocBackend):
    """One that anybody on the network can speak to."""

    scheme = "open"

    @property
    def traits(self) -> BackendTraits:
        return BackendTraits()


class Broken(InprocBackend):
    @classmethod
    def from_config(cls, config: TransferConfig) -> Backend:
        raise OSError("no such device")


def missing() -> type[Backend]:
    raise ImportError("libfast is not installed")


LOADERS = {"open": lambda: Open, "inproc": lambda: InprocBackend, "broken": lambda: Broken, "missing": missing}


def test_ours_are_there() -> None:
    loaders = installed_backends()
    assert set(BACKENDS) <= set(loaders)
    for scheme in BACKENDS:
        assert loaders[scheme]().scheme == scheme


def test_a_package_adds_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "tests.unit.transfer.test_registry:Open", "pdmesh.transfer")
    monkeypatch.setattr(
        "transfer.backends.registry.entry_points", lambda group: [point] if group == point.group else []
    )
    assert set(installed_backends()) == {*BACKENDS, "mine"}


def test_the_order_is_kept() -> None:
    built = build_backends(TransferConfig(backends=("inproc", "open")), LOADERS)
    assert [backend.scheme for backend in built] == ["inproc", "open"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (TransferConfig(backends=("opan",)), ["'opan' is not installed", "did you mean 'open'"]),
        (TransferConfig(backends=("missing",)), ["'missing' cannot be used here", "libfast"]),
        (TransferConfig(backends=("broken",)), ["'broken' cannot be used here", "no such device"]),
        (TransferConfig(backends=("open",), host="10.0.0.7"), ["'10.0.0.7'", "'open'", "trusted_network: true"]),
    ],
)
def test_a_backend_that_cannot_be_used_is_named(config: TransferConfig, says: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build_backends(config, LOADERS)
    for word in says:
        assert word in str(refused.value)


@pytest.mark.parametrize("change", [{"host": "127.0.0.1"}, {"host": "::1"}, {"host": "h", "trusted_network": True}])
def test_strangers_are_kept_out_or_the_network_is_trusted(change: dict[str, object]) -> None:
    assert build_backends(TransferConfig(backends=("open",), **change), LOADERS)  # type: ignore[arg-type]
    assert build_backends(TransferConfig(backends=("inproc",), host="10.0.0.7"), LOADERS)
