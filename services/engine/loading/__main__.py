"""`python -m services.engine.loading NAME`: prepare a model; its folder is the last line on stdout."""

import argparse
import os
import sys

from rich.console import Console

from common.errors import ModelError
from common.model_store import BUILT_IN, cache_root
from services.engine.loading.prepare import prepare
from services.engine.loading.progress import RichProgress


def main(arguments: list[str]) -> int:
    """Exit codes: 0 prepared, 1 failed, 2 bad usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m services.engine.loading", description="Fetch and convert a model into the cache, once."
    )
    parser.add_argument("name", help=f"{', '.join(BUILT_IN)}, a folder, a .gguf file, or a hub id")
    name = parser.parse_args(arguments).name
    console = Console(stderr=True)
    try:
        with RichProgress(console) as progress:
            location = prepare(name, cache_root(os.environ), progress)  # noqa: TID251 - a composition root
    except ModelError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    print(location.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
