"""One streamed completion, timed where a client would."""

from dataclasses import dataclass, field

import aiohttp
import msgspec

from common.clock import Clock
from common.errors import PdmeshError

_DATA = b"data: "
_DONE = b"[DONE]"


class LoadError(PdmeshError):
    """A mesh did not serve what it was sent; the message has its own words."""


class LoadRequest(msgspec.Struct, frozen=True):
    """What one client asks for: greedy, exactly `output_tokens` tokens."""

    at_s: float
    """Seconds after the start of the load."""
    prompt: tuple[int, ...]
    output_tokens: int
    split: str | int | float | None = None
    """Where to split the prompt, at a mesh that lets requests say that; None: its policy decides."""


@dataclass(slots=True)
class StreamTimes:
    """When the pieces of one answer came, in seconds of the clock."""

    asked_at: float
    events_at: list[float] = field(default_factory=list)
    """Of every event that carries text; a token whose text is not whole yet has none."""
    text: str = ""
    tokens: int = 0
    placement: str = ""
    cached_tokens: int = 0
    """Of the prompt, that nobody computed for this request."""

    @property
    def ttft_s(self) -> float:
        """To the first event."""
        return self.events_at[0] - self.asked_at

    @property
    def last_at(self) -> float:
        """When the last event came."""
        return self.events_at[-1]

    def gaps(self) -> list[float]:
        """Between successive events."""
        return [later - earlier for earlier, later in zip(self.events_at, self.events_at[1:], strict=False)]


class _Choice(msgspec.Struct):
    text: str = ""


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails = _PromptDetails()


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


async def stream(client: aiohttp.ClientSession, model: str, request: LoadRequest, clock: Clock) -> StreamTimes:
    """Ask and read to the end. Raises LoadError where the mesh refuses, fails or stops early."""
    body = {
        "model": model,
        "prompt": list(request.prompt),
        "max_tokens": request.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.split is not None:
        body["pdmesh"] = {"split": request.split}
    times = StreamTimes(clock.now())
    decoder = msgspec.json.Decoder(_Chunk)
    is_done = False
    async with client.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise LoadError(f"HTTP {response.status}: {(await response.text())[:500]}")
        times.placement = response.headers.get("x-pdmesh-placement", "")
        async for line in response.content:
            if not line.startswith(_DATA):
                continue
            now, payload = clock.now(), line[len(_DATA) :].strip()
            if payload == _DONE:
                is_done = True
                continue
            _take(times, decoder.decode(payload), now)
    if not is_done or times.tokens != request.output_tokens:
        raise LoadError(f"an answer of {times.tokens} of {request.output_tokens} tokens, ended properly: {is_done}")
    return times


def _take(times: StreamTimes, chunk: _Chunk, now: float) -> None:
    if chunk.error is not None:
        raise LoadError(f"the answer ended with an error: {chunk.error}")
    if chunk.usage is not None:
        times.tokens = chunk.usage.completion_tokens
        times.cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens
    if any(choice.text for choice in chunk.choices):
        times.events_at.append(now)
        times.text += chunk.choices[0].text
