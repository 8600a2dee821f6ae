"""Fixtures of the mesh tests."""

from pathlib import Path

import pytest

from services.engine.twin.deterministic_model import write_deterministic_model


@pytest.fixture(scope="session")
def deterministic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deterministic_model(tmp_path_factory.mktemp("deterministic"))
