"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

from common.model_store import cache_root
from services.engine.loading.prepare import prepare
from services.engine.loading.progress import SilentProgress

pytest_plugins = ["tests.skip_policy"]


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model, prepared as a user's would be (once per cache: half a minute and a download of 90 MB)."""
    return prepare("smollm2", cache_root(os.environ), SilentProgress()).folder
