"""Fixtures shared by all tests."""

import os
from pathlib import Path

import hypothesis
import pytest
from rich.console import Console

from common.model_store import cache_root
from services.engine.loading.prepare import prepare
from services.engine.loading.progress import RichProgress

pytest_plugins = ["tests.skip_policy"]

# Hypothesis would fail a test that took long once: machines are shared and noisy.
hypothesis.settings.register_profile("pdmesh", deadline=None)
hypothesis.settings.load_profile("pdmesh")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model, prepared as a user's would be (once per cache: half a minute and a download of 90 MB)."""
    return prepare("smollm2", cache_root(os.environ), RichProgress(Console(quiet=True))).folder
