"""Where an HTTP answer ends, and how many server-sent events it carries. Pure."""

import re

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_EVENT = b"data: "


class AnswerBytes:
    """The bytes of one answer as they come. Made for speed: the answer's end is looked for only where it can be."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._body_at = 0
        self._ends_at: int | None = None
        self._is_chunked = False

    def add(self, data: bytes) -> bool:
        """More has come; whether the answer is whole now. Raises ValueError for a head without a body's length."""
        self.data += data
        if self._body_at == 0 and not self._read_head():
            return False
        if self._is_chunked:
            return self.data.endswith(_LAST_CHUNK)
        return self._ends_at is not None and len(self.data) >= self._ends_at

    @property
    def is_good(self) -> bool:
        """Whether the status is 200."""
        return self.data[9:12] == b"200"

    def body(self) -> bytes:
        """The body of a whole answer, without the framing of chunks."""
        body = bytes(self.data[self._body_at :])
        return without_chunks(body) if self._is_chunked else body

    def events(self, expected: int) -> int:
        """The server-sent events of a whole answer; faster where there are `expected`."""
        # A name split by the framing of chunks is not seen at first, and then the body is read without it.
        found = self.data.count(_EVENT, self._body_at)
        return found if found == expected else self.body().count(_EVENT)

    def _read_head(self) -> bool:
        head_end = self.data.find(_HEAD_END)
        if head_end < 0:
            return False
        head = bytes(self.data[:head_end])
        self._body_at = head_end + len(_HEAD_END)
        self._is_chunked = _CHUNKED.search(head) is not None
        if not self._is_chunked:
            if (length := _LENGTH.search(head)) is None:
                raise ValueError(f"an answer without a length: {head[:200]!r}")
            self._ends_at = self._body_at + int(length[1])
        return True


def without_chunks(body: bytes) -> bytes:
    """The content of a whole body in chunked transfer coding (RFC 9112, 7.1)."""
    content, at = bytearray(), 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end].split(b";")[0], 16)
        if size == 0:
            return bytes(content)
        content += body[line_end + 2 : line_end + 2 + size]
        at = line_end + 2 + size + 2
