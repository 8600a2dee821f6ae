"""What can go wrong before a figure is there."""

from common.errors import PdmeshError


class BenchError(PdmeshError):
    """The engine cannot be measured; the message says why and what to do."""
