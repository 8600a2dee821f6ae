"""Backends that use sockets must work on both event loops: the standard one and the one that services run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ("test_tcp.py", "test_tcp_lanes.py", "test_tcp_tls.py", "test_shm.py", "test_shm_doors.py"):
        factories["uvloop"] = uvloop.new_event_loop
    return factories
