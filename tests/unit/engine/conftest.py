"""What the engine's tests share."""

import pytest

from services.engine.native.kernels import Kernels


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Compiled for this run; needs a C++ compiler, as transfer's tests do."""
    made = Kernels.compiled(tmp_path_factory.mktemp("engine-kernels"))
    assert made is not None
    return made
