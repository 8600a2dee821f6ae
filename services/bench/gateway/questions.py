"""What the clients ask, and the bytes that they send."""

from urllib.parse import urlsplit

import msgspec

MODEL = "instant"
PATH = "/v1/completions"
PROMPT = "What does a gateway cost that tokenises, places, numbers and detokenises? " * 2
STREAM_TOKENS = 32


class Question(msgspec.Struct, frozen=True):
    """One kind of request. Every request of a run has the same bytes."""

    streaming: bool
    output_tokens: int
    """Tokens of the answer; the worker emits each in a message of its own."""

    @property
    def name(self) -> str:
        """For a person."""
        return f"{'stream' if self.streaming else 'whole'} of {self.output_tokens}"

    def body(self) -> bytes:
        """The JSON of the request."""
        return msgspec.json.encode(
            {
                "model": MODEL,
                "prompt": PROMPT,
                "max_tokens": self.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": self.streaming,
            }
        )

    def markers(self) -> tuple[bytes, ...]:
        """Pieces of the body, as compact JSON, that no body of another kind of question has all of."""
        stream = b'"stream":true' if self.streaming else b'"stream":false'
        return (stream, b'"max_tokens":%d,' % self.output_tokens)


WHOLE = Question(streaming=False, output_tokens=1)
WHOLE_IN_STEPS = Question(streaming=False, output_tokens=STREAM_TOKENS)
STREAM = Question(streaming=True, output_tokens=STREAM_TOKENS)


def http_request(url: str, body: bytes) -> bytes:
    """The bytes of the whole HTTP request, for a connection that is kept alive."""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
