"""What the raw handler and the mock workers answer: bytes that the gateway has answered before."""

from collections.abc import Sequence

import aiohttp
import msgspec

from services.bench.gateway.questions import PATH, Question
from services.bench.transfer.errors import BenchError

_EVENT_END = b"\n\n"
_DONE = b"data: [DONE]\n\n"


class FixedAnswer(msgspec.Struct, frozen=True):
    """The answer to requests whose body has all of `markers`: `body`, or `events` where it is a stream."""

    markers: tuple[bytes, ...]
    body: bytes = b""
    events: tuple[bytes, ...] = ()
    """Each with its `data: ` and its blank line."""

    def fits(self, request: bytes) -> bool:
        """Whether it is the answer to a request of this body."""
        return all(marker in request for marker in self.markers)


def split_events(body: bytes) -> tuple[bytes, ...]:
    """The events of a whole stream. Raises BenchError where it does not end as a stream should."""
    if not body.endswith(_DONE):
        raise BenchError(f"a stream without [DONE]: it ends with {body[-200:]!r}")
    return tuple(event + _EVENT_END for event in body.split(_EVENT_END)[:-1])


class _Choice(msgspec.Struct):
    text: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


def text_events(events: Sequence[bytes]) -> int:
    """How many of them carry text: one each for a token, where none is told with another."""
    payloads = [event.removeprefix(b"data: ") for event in events if event != _DONE]
    return sum(any(choice.text for choice in msgspec.json.decode(one, type=_Chunk).choices) for one in payloads)


async def record(url: str, question: Question) -> FixedAnswer:
    """What the gateway at `url` answers. Raises BenchError where it is not one event for each token."""
    async with (
        aiohttp.ClientSession(url) as client,
        client.post(PATH, data=question.body(), headers={"Content-Type": "application/json"}) as response,
    ):
        body = await response.read()
        if response.status != 200:
            raise BenchError(f"the gateway refused {question.name}: {body[:500]!r}")
    if not question.streaming:
        return FixedAnswer(question.markers(), body=body)
    events = split_events(body)
    if (found := text_events(events)) != question.output_tokens:
        raise BenchError(f"a stream of {question.output_tokens} tokens came in {found} events: {body[:500]!r}")
    return FixedAnswer(question.markers(), events=events)
