"""A source in a process of its own that writes striped segments to its one taker for ever."""

import asyncio

from tests.contract.tcp_wire import ALWAYS
from transfer.backends.base import Link
from transfer.backends.tcp import TcpBackend

ZONE_BYTES = 4 << 20


async def main() -> None:
    """Print the endpoint, wait for a taker's word, and write."""
    links: asyncio.Queue[Link] = asyncio.Queue()
    listener = await TcpBackend(striping=ALWAYS).listen(links.put_nowait)
    print(listener.endpoint, flush=True)
    link = await links.get()
    await link.receive()
    data = memoryview(bytes(ZONE_BYTES))
    while True:
        await link.write(0, data)
        await link.send(b"written")


if __name__ == "__main__":
    asyncio.run(main())
