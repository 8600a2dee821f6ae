"""Fixtures of the docker tests: skipped, with a reason, where there is no engine."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import ROOT, Engine, NoEngine, compose_command, some_engine
from tests.docker.image import build_image


@pytest.fixture(scope="session")
def tools() -> None:
    """CI installs what is missing; elsewhere that is the person's decision."""
    if os.environ.get("CI") == "true" and os.geteuid() == 0 and shutil.which("apt-get") and not shutil.which("dockerd"):
        subprocess.run((ROOT / "scripts" / "docker-engine",), check=False, timeout=600)


@pytest.fixture(scope="session")
def compose(tools: None) -> tuple[str, ...]:
    try:
        return compose_command()
    except NoEngine as reason:
        pytest.skip(f"needs a container engine: {reason}")


@pytest.fixture(scope="session")
def engine(tools: None) -> Iterator[Engine]:
    try:
        with some_engine() as found:
            yield found
    except NoEngine as reason:
        pytest.skip(f"needs a container engine: {reason}")


@pytest.fixture(scope="session")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """This checkout's image."""
    tag = f"pdmesh-test:{os.getpid()}"
    folder = tmp_path_factory.mktemp("image")
    try:
        build_image(engine, folder, tag)
    except NoEngine as reason:
        pytest.skip(f"needs a container engine: {reason}")
    finally:
        shutil.rmtree(folder)
    yield tag
    if not engine.is_own:  # which goes with all its images
        engine.docker("image", "rm", tag, timeout_s=300)


@pytest.fixture(scope="session")
def model_cache(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the default model in it, which a container's user may write to."""
    cache = tmp_path_factory.mktemp("cache")
    shutil.copytree(smollm2_folder, cache / "models" / smollm2_folder.name, copy_function=os.link)
    for folder in (cache, cache / "models"):
        folder.chmod(0o777)
    return cache
