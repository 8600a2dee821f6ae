"""How a child process notices that its parent died, however it died: a pipe that closes with the parent."""

import os
import signal
import threading
import time

GRACE_S = 10.0
"""How long an orphan may drain before it is killed."""


class Lifeline:
    """The parent's end. Every child inherits `child_fd`; the other end lives in the parent alone."""

    def __init__(self) -> None:
        self.child_fd, self._parent_fd = os.pipe()

    def close(self) -> None:
        """Close both ends: children still alive then end. Idempotent."""
        for fd in (self.child_fd, self._parent_fd):
            if fd >= 0:
                os.close(fd)
        self.child_fd = self._parent_fd = -1


def end_with_parent(fd: int, grace_s: float = GRACE_S) -> None:
    """In a child: when the parent is gone, terminate as by SIGTERM, and if that takes `grace_s`, at once.

    A thread waits, not the event loop, so that a loop that hangs cannot keep an orphan alive.
    """
    threading.Thread(target=_wait_and_end, args=(fd, grace_s), name="lifeline", daemon=True).start()


def _wait_and_end(fd: int, grace_s: float) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)
