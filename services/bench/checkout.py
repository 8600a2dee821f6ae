"""Which source a benchmark ran from."""

import subprocess
from pathlib import Path

UNKNOWN = "unknown"


def commit_of(folder: Path) -> str:
    """The commit checked out in `folder`, with "-dirty" where tracked files differ from it; UNKNOWN without git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30.0)
    return done.stdout.strip()
