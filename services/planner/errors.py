"""What can go wrong when a running mesh is measured."""

from common.errors import PdmeshError


class PlannerError(PdmeshError):
    """The mesh cannot be asked, or does not answer as it should; the message says what to do."""


class PlanError(PlannerError):
    """No plan can be made of what was asked for; the message says what the smallest change is that would make one."""


class Busy(PlannerError):
    """The instance does not measure that now; it may a little later."""
