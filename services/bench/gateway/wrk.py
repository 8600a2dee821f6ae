"""wrk, the HTTP load generator, where it is installed (a package of Debian)."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.bench.gateway.questions import PATH
from services.bench.gateway.sample import Sample
from services.bench.transfer.errors import BenchError

_QUOTE = "=" * 8
_SCRIPT = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [{quote}[{body}]{quote}]
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('{{"answers":%d,"seconds":%f,"p50_us":%f,"p99_us":%f,"errors":%d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99), failed))
end
"""


class WrkFigures(msgspec.Struct, frozen=True):
    """What the script writes."""

    answers: int
    seconds: float
    p50_us: float
    p99_us: float
    errors: int


def find_wrk(environ: Mapping[str, str]) -> Path | None:
    """Where wrk is, if it is on the path."""
    found = shutil.which("wrk", path=environ.get("PATH"))
    return None if found is None else Path(found)


def wrk_script(body: bytes) -> str:
    """A script that posts `body` and writes one line of JSON in the end. Raises ValueError where Lua cannot hold it."""
    text = body.decode()
    if f"]{_QUOTE}]" in text:
        raise ValueError(f"a body with ]{_QUOTE}] in it cannot be quoted for Lua")
    return _SCRIPT.format(quote=_QUOTE, body=text)


def read_output(output: str) -> WrkFigures:
    """The figures in what wrk has printed. Raises BenchError where there are none, or where anything failed."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchError(f"wrk printed no figures: {output[-500:]!r}")
    figures = msgspec.json.decode(lines[-1], type=WrkFigures)
    if figures.errors or not figures.answers:
        raise BenchError(f"wrk saw {figures.errors} failures in {figures.answers} answers; does the server answer 200?")
    return figures


async def run_wrk(wrk: Path, url: str, script: Path, connections: int, seconds: int) -> Sample:
    """One run with one thread. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(
        str(wrk),
        *("--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"),
        *("--timeout", "30s", "--script", str(script), f"{url}{PATH}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    figures = read_output(output.decode(errors="replace"))
    return Sample(figures.answers, figures.answers / figures.seconds, figures.p50_us / 1e3, figures.p99_us / 1e3)
