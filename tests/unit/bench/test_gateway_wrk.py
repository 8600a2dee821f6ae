"""What is told to wrk, and what it says."""

from pathlib import Path

import pytest

from services.bench.gateway.questions import WHOLE
from services.bench.gateway.wrk import find_wrk, read_output, run_wrk, wrk_script
from services.bench.transfer.errors import BenchError

OUTPUT = """Running 2s test @ http://127.0.0.1:1/v1/completions
  1 threads and 16 connections
{"answers":10,"seconds":2.000000,"p50_us":250.000000,"p99_us":900.000000,"errors":0}
"""


def test_figures_are_the_last_line() -> None:
    figures = read_output(OUTPUT)
    assert (figures.answers, figures.seconds, figures.p50_us, figures.p99_us) == (10, 2.0, 250.0, 900.0)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("unable to connect to 127.0.0.1:1 Connection refused\n", "no figures.*Connection refused"),
        (OUTPUT.replace('"errors":0', '"errors":3'), "3 failures in 10"),
        (OUTPUT.replace('"answers":10', '"answers":0'), "0 failures in 0"),
    ],
)
def test_a_run_that_failed_has_no_figures(output: str, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        read_output(output)


def test_the_body_stands_in_the_script_as_it_is() -> None:
    body = WHOLE.body()
    assert f"[========[{body.decode()}]========]" in wrk_script(body)
    with pytest.raises(ValueError, match="cannot be quoted"):
        wrk_script(b"x]========]y")


async def test_a_run_by_a_program_like_it(tmp_path: Path) -> None:
    program = tmp_path / "wrk"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in OUTPUT.splitlines()) + 'echo "$@"\n')
    program.chmod(0o755)
    assert find_wrk({"PATH": str(tmp_path)}) == program
    assert find_wrk({"PATH": str(tmp_path / "empty")}) is None
    sample = await run_wrk(program, "http://127.0.0.1:1", tmp_path / "script.lua", 16, 2)
    assert (sample.answers, sample.answers_per_s, sample.p50_ms, sample.p99_ms) == (10, 5.0, 0.25, 0.9)
