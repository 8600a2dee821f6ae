"""Keep transformers from writing into our logs and progress."""

import contextlib
import io
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside the block; its settings are put back afterwards."""
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Drop what Python code writes to stderr: transformers' GGUF loader has a bar that no setting turns off."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
