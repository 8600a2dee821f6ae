"""The policy on skips, run as CI runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skip_policy import is_allowed

ROOT = Path(__file__).parent.parent
HEAD = "import pytest\ndef test_passes(): pass\n"


@pytest.mark.parametrize(
    ("reason", "allowed"),
    [
        ("Skipped: needs a CUDA or ROCm device", True),
        ("needs a container engine (docker is not there)", True),
        ("Skipped: flaky", False),
        ("this needs a container engine", False),
        ("", False),
    ],
)
def test_the_list_of_reasons(reason, allowed):
    assert is_allowed(reason) is allowed


@pytest.mark.parametrize(
    ("body", "ci", "code"),
    [
        ("def test_a(): pytest.skip('flaky')", "true", 1),
        ("@pytest.mark.skip(reason='flaky')\ndef test_a(): pass", "true", 1),
        ("@pytest.mark.skipif(True, reason='flaky')\ndef test_a(): pass", "true", 1),
        ("pytest.importorskip('no_such_module')", "true", 1),
        ("def test_a(): pytest.skip('needs a CUDA or ROCm device')", "true", 0),
        ("@pytest.mark.xfail(reason='known', strict=True)\ndef test_a(): assert False", "true", 0),
        ("def test_a(): pytest.skip('flaky')", "", 0),
    ],
)
def test_a_run_with_a_skip(tmp_path, body, ci, code):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(f"{HEAD}{body}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.skip_policy", "-p", "no:cacheprovider", str(tmp_path)],
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout
    assert ("SKIP NOT ALLOWED" in done.stdout) is (code == 1)
