"""D's landing zones, as threads fill them and the event loop takes them away."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from transfer.errors import Corrupt
from transfer.frames import FrameHeader


class LandingZones:
    """Views that are replaced as a whole. Safe between threads."""

    def __init__(self) -> None:
        self._views: tuple[memoryview, ...] = ()
        self._users = 0
        self._changed = threading.Condition()

    def target(self, header: FrameHeader) -> memoryview:
        """Where the payload of a SEGMENT goes; raises Corrupt when there is no such place."""
        views, end = self._views, header.mark + header.length
        if header.zone >= len(views) or end > len(views[header.zone]):
            raise Corrupt(
                f"{header.length} bytes for zone {header.zone!r} from byte {header.mark!r} on, of {len(views)} zones"
            )
        return views[header.zone][header.mark : end]

    @contextmanager
    def lent(self, header: FrameHeader) -> Iterator[memoryview]:
        """The target, which stays the caller's until the block ends: `replace` waits for that."""
        with self._changed:
            target = self.target(header)
            self._users += 1
        try:
            yield target
        finally:
            target.release()
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def replace(self, views: Sequence[memoryview], evict: Callable[[], None]) -> None:
        """Take other zones. When it returns nobody uses the former ones; `evict` must make users leave at once."""
        with self._changed:
            self._views = tuple(views)
            if self._users:
                evict()
            while self._users:
                self._changed.wait()
