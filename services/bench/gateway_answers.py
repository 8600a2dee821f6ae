"""What the gateway of a measured mesh says of itself on its JSON routes."""

from typing import TypeVar

import aiohttp
import msgspec

from services.bench.engine.errors import BenchError

T = TypeVar("T")


async def read_answer(url: str, path: str, shape: type[T], **query: str) -> T:
    """The answer of GET `path` at the gateway `url`. Raises BenchError where there is none of this shape."""
    try:
        async with aiohttp.ClientSession(url) as client, client.get(path, params=query) as response:
            return msgspec.json.decode(await response.read(), type=shape)
    except (aiohttp.ClientError, msgspec.MsgspecError) as error:
        raise BenchError(f"{url}: the gateway's {path} cannot be read: {error}") from error
