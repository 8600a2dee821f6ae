"""What is measured: somebody who answers completions, and who that is."""

import msgspec

PDMESH, RAW = "pdmesh", "aiohttp"


class System(msgspec.Struct, frozen=True):
    """One server under measurement."""

    name: str
    version: str
    settings: str
    url: str
    pid: int
    """The process that the clients speak with."""


class Skipped(msgspec.Struct, frozen=True):
    """A peer that is not measured, and why."""

    name: str
    reason: str
