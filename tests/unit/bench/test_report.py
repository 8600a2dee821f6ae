import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from services.bench.checkout import UNKNOWN, commit_of
from services.bench.machine import this_machine
from services.bench.report import Report, Where, write_report
from services.bench.table import rows_table


def test_the_file_has_the_one_shape(tmp_path: Path):
    rows = ({"where": Where.EMULATED, "repeats": 3, "x_s": 0.5, "none": None, "is_so": True},)
    report = Report("pdmesh bench x", "abc", "2026-01-01T00:00:00+00:00", this_machine(), rows, {"a_over_b": 2.0})
    write_report(report, tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text())
    assert list(read) == ["command", "commit", "date", "machine", "rows", "summary"]
    assert read["rows"] == [{"where": "emulated", "repeats": 3, "x_s": 0.5, "none": None, "is_so": True}]
    assert read["summary"] == {"a_over_b": 2.0}
    assert {"cpu", "cores", "gpu", "os", "torch"} <= set(read["machine"])
    assert read["machine"]["cores"] >= 1


def test_the_commit_says_whether_the_source_was_changed(tmp_path: Path):
    def git(*arguments: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD").strip()
    (tmp_path / "report.json").write_text("untracked files do not count")
    assert commit_of(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert commit_of(tmp_path) == f"{commit}-dirty"


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_of(tmp_path) == UNKNOWN


def test_a_table_shows_what_a_row_has():
    rows = [{"size_bytes": 3 << 20, "is_so": True, "x": 0.123456}, {"size_bytes": 1 << 19, "x": None}]
    console = Console(width=60, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(rows_table("title", rows, {"MiB": "size_bytes", "so": "is_so", "x": "x"}))
    lines = captured.get().splitlines()
    assert lines[0].strip() == "title"
    assert [cell.strip() for cell in lines[4].split("│")[1:-1]] == ["3", "yes", "0.123"]
    assert [cell.strip() for cell in lines[5].split("│")[1:-1]] == ["0.5", "", ""]
