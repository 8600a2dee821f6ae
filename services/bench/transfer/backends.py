"""The backends that can be measured here."""

from collections.abc import Mapping

import msgspec

from common.config.types import TransferConfig
from common.errors import PdmeshError
from transfer.backends.base import Backend
from transfer.backends.registry import Loaders

ONE_PROCESS = "inproc"
"""The scheme whose source and sink must share a backend, and so a process."""


class Usable(msgspec.Struct, frozen=True):
    """Which backends work, by scheme, and why the others do not."""

    backends: Mapping[str, Backend]
    skipped: Mapping[str, str]


def usable_backends(loaders: Loaders) -> Usable:
    """Every backend, configured as a mesh.yaml that says nothing configures it."""
    backends: dict[str, Backend] = {}
    skipped: dict[str, str] = {}
    for scheme, load in loaders.items():
        try:
            backends[scheme] = load().from_config(TransferConfig())
        except (ImportError, OSError, PdmeshError) as error:
            skipped[scheme] = f"{type(error).__name__}: {error}"
    return Usable(backends, skipped)
