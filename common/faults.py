"""Deaths on order: a process ends or stops itself at a named point, so that tests can prove what happens then.

Off unless mesh.yaml names a fault file.  The file holds "INSTANCE POINT kill|stop"; the first process that reaches the
point removes the file (so that its restarted self does not die again) and sends itself SIGKILL or SIGSTOP.
"""

import os
import signal
from enum import StrEnum
from pathlib import Path

from common.ids import InstanceId


class FaultPoint(StrEnum):
    """The named points, in the order in which a request reaches them."""

    PREFILL_ACCEPTED = "prefill-accepted"
    PREFILL_RESERVED = "prefill-reserved"
    PREFILL_FIRST_LAYER = "prefill-first-layer"
    """The first layer may be on the wire; the others are not computed."""
    PREFILL_COMPUTED = "prefill-computed"
    PREFILL_RELEASED = "prefill-released"
    DECODE_ACCEPTED = "decode-accepted"
    DECODE_RESERVED = "decode-reserved"
    """The hand-off is about to be opened."""
    DECODE_LANDED = "decode-landed"
    DECODE_FIRST_TOKEN = "decode-first-token"
    DECODE_EIGHTH_TOKEN = "decode-eighth-token"


class Faults:
    """The fault file of one process; `None` is no faults ever."""

    def __init__(self, instance: InstanceId, file: str | None) -> None:
        self._instance = instance
        self._file = None if file is None else Path(file)

    def reach(self, point: FaultPoint) -> None:
        """Die or stop here if the fault file says so."""
        if self._file is None:
            return
        try:
            order = self._file.read_text()
        except FileNotFoundError:
            # None is armed. To ask whether the file exists first would be a race with the process that it is meant for.
            return
        instance, armed, action = order.split()
        if (instance, armed) != (self._instance, point):
            return
        self._file.unlink()
        match action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case _:
                raise ValueError(f"{self._file}: {action!r} is neither kill nor stop")

    @staticmethod
    def arm(file: Path, instance: InstanceId, point: FaultPoint, action: str) -> None:
        """Order the next process of `instance` that reaches `point` to die ("kill") or hang ("stop")."""
        staged = file.with_suffix(".tmp")
        staged.write_text(f"{instance} {point} {action}")
        staged.replace(file)
