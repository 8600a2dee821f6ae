"""What can go wrong with local processes."""

from common.errors import PdmeshError


class LaunchError(PdmeshError):
    """A process of the mesh did not start, or a question was asked about one that does not run."""
