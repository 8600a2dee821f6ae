"""What the tests of the bus share."""

import asyncio
from collections.abc import Awaitable, Callable

from common.bus.client import BusClient
from common.bus.codecs import from_worker_codec, to_worker_codec
from common.bus.drops import Drops
from common.bus.server import BusServer
from common.bus.sockets import BusOptions
from common.clock import SystemClock
from common.ids import Generation, InstanceId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import Heartbeat, Load, Register, Role

FAST = BusOptions(heartbeat_s=0.1, heartbeat_timeout_s=0.3, linger_s=0.2, reconnect_s=0.01, reconnect_max_s=0.05)

LAYOUT = KVLayout(
    model="m",
    dtype=KVDType.FLOAT32,
    block_size=16,
    order=KVOrder.NHD,
    layers=Interval(0, 2),
    heads=Interval(0, 3),
    head_dim=64,
)

HEARTBEAT = Heartbeat(instance=InstanceId("d0"), generation=Generation(1), load=Load(running=2))


def registration(generation: Generation) -> Register:
    return Register(
        instance=InstanceId("d0"),
        role=Role.DECODE,
        generation=generation,
        endpoints=(),
        layout=LAYOUT,
        context_length=2048,
        kv_capacity_tokens=4096,
        max_batch=16,
    )


def make_server(endpoint: str = "tcp://127.0.0.1:*", options: BusOptions = FAST) -> BusServer:
    return BusServer(endpoint, from_worker_codec(), to_worker_codec(), drops=Drops(SystemClock()), options=options)


def make_client(endpoint: str, options: BusOptions = FAST, drops: Drops | None = None) -> BusClient:
    return BusClient(
        endpoint, to_worker_codec(), from_worker_codec(), drops=drops or Drops(SystemClock()), options=options
    )


async def until(condition: Callable[[], object], each: Callable[[], Awaitable[object]] | None = None) -> None:
    """Wait until `condition` is true; the test's own time limit ends a wait in vain."""
    while not condition():
        if each is not None:
            await each()
        await asyncio.sleep(0.005)
