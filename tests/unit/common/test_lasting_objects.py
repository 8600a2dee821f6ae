"""What is there when a service has started is not collected, what comes later is."""

import gc
import weakref

from common.lasting_objects import keep_what_is_there


class Ring:
    def __init__(self) -> None:
        self.me = self


def test_only_what_comes_later_is_collected() -> None:
    early = Ring()
    seen_early = weakref.ref(early)
    try:
        keep_what_is_there()
        late = Ring()
        seen_late = weakref.ref(late)
        del early, late
        gc.collect()
        assert seen_early() is not None
        assert seen_late() is None
    finally:
        gc.unfreeze()
