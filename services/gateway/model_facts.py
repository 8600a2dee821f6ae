"""What the gateway reads of a model without loading it."""

import json
from pathlib import Path

from common.errors import ModelError


def context_length_of(folder: Path) -> int:
    """Most positions of one sequence, from config.json (the text part of a multi-modal one). Raises ModelError."""
    try:
        config = json.loads((folder / "config.json").read_text())
        length = config.get("text_config", config)["max_position_embeddings"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{str(folder)!r} says no max_position_embeddings in its config.json: {error!r}") from error
    if not isinstance(length, int) or length < 1:
        raise ModelError(f"max_position_embeddings in {str(folder)!r} is {length!r}; it must be a positive integer")
    return length
