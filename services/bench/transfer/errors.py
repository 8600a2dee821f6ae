"""What can go wrong in a measurement."""

from common.errors import PdmeshError


class BenchError(PdmeshError):
    """A measurement could not be made; the message says which and why."""
