"""What docs/transfer.md shows is run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transfer.backends.base import Backend
from transfer.testing import BackendContract

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def documented_backend() -> type[Backend]:
    (source,) = (block for block in BLOCKS if "class UnixBackend" in block)
    names: dict[str, Any] = {"__name__": "documented"}
    exec(compile(source, "docs/transfer.md", "exec"), names)
    found = names["UnixBackend"]
    assert issubclass(found, Backend)
    return found


class TestDocumentedBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return documented_backend()()


def test_the_example_of_two_layouts_prints_what_the_page_says() -> None:
    (source,) = (block for block in BLOCKS if "asyncio.run(main())" in block)
    ran = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert f"`{first}`" in PAGE
    assert second.startswith("Acknowledged")
