"""Whether a grammar can be compiled, found out before a request is placed, in a process that may be lost.

The library bounds most of what a schema can ask for, but not all: intersections of patterns take exponential time,
and what runs out of stack takes its process along. What gets through here is compiled by D in about the same time.
"""

import asyncio
import sys
from collections import OrderedDict
from typing import Final

import msgspec

from common.errors import PdmeshError

REMEMBERED: Final = 256
"""Verdicts kept, the last used: most clients send the same few schemas again and again."""

LONGEST_S: Final = 3.0
"""For one grammar. An honest one takes 10 to 50 ms."""

_Verdict = str | None


class GrammarCheck:
    """Asks one process at a time, which starts with the first question. Close it."""

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s
        self._verdicts: OrderedDict[str, _Verdict] = OrderedDict()
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def refusal(self, grammar: str) -> _Verdict:
        """Why no answer can be kept within `grammar`; None: one can. Cancelling costs a process."""
        if grammar not in self._verdicts:
            async with self._turn:
                # Others may have asked the same meanwhile.
                answer = self._verdicts[grammar] if grammar in self._verdicts else await self._ask(grammar)
            if isinstance(answer, _Lost):
                # Not remembered: on a machine with too much to do it may have been an honest one.
                return answer.words
            self._verdicts[grammar] = answer
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(grammar)
        return self._verdicts[grammar]

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _ask(self, grammar: str) -> "_Verdict | _Lost":
        data = grammar.encode()
        answer = b""
        try:
            process = await self._started()
            assert process.stdin is not None
            async with asyncio.timeout(self._longest_s):
                process.stdin.write(len(data).to_bytes(4, "big") + data)
                await process.stdin.drain()
                answer = await _line_of(process)
        except TimeoutError:
            return _Lost(f"it takes more than {self._longest_s:g} s to compile; use fewer or simpler patterns")
        except ConnectionError:
            pass
        finally:
            # Else the next question would be given this one's answer.
            if not answer:
                await self.close()
        if not answer:
            return _Lost("it nests too deep, or takes too much memory to compile; make it simpler")
        return msgspec.json.decode(answer, type=str | None)

    async def _started(self) -> asyncio.subprocess.Process:
        """The process, when it has said that it listens: how long it takes to start is no grammar's fault."""
        if self._process is None or self._process.returncode is not None:
            await self.close()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "services.gateway.lane.grammar_worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            if not await _line_of(self._process):
                raise PdmeshError("the process that tries grammars has ended at once; it has written why to stderr")
        return self._process


class _Lost(msgspec.Struct, frozen=True):
    """There is no verdict but for the loss of the process."""

    words: str


async def _line_of(process: asyncio.subprocess.Process) -> bytes:
    """The next whole line; empty where the process has ended."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    return line if line.endswith(b"\n") else b""
