"""Which of a source's endpoints a sink uses, best first: a pure choice from what is known of each."""

from collections.abc import Mapping, Sequence

import msgspec

from transfer.backends.base import Backend
from transfer.probe import LinkFigures


class Path(msgspec.Struct, frozen=True):
    """One endpoint of a source that a backend of this sink can reach."""

    scheme: str
    endpoint: str


def paths_to(endpoints: Sequence[str], backends: Sequence[Backend]) -> tuple[Path, ...]:
    """The paths to a source with `endpoints`, in the sink's order of preference."""
    return tuple(
        Path(backend.scheme, endpoint)
        for backend in backends
        for endpoint in endpoints
        if endpoint.partition("://")[0] == backend.scheme and backend.reaches(endpoint)
    )


def fastest_first(paths: Sequence[Path], figures: Mapping[str, LinkFigures]) -> tuple[Path, ...]:
    """Those that a self-test has measured (by endpoint), the fastest at the head; then the others as they stand."""
    return tuple(sorted(paths, key=lambda path: _rank(figures.get(path.endpoint))))


def _rank(figures: LinkFigures | None) -> float:
    return 0.0 if figures is None else -figures.bytes_per_s
