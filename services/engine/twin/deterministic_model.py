"""A model folder for the deterministic runner: a byte-level tokenizer and no weights.

`model: <such a folder>` makes a whole mesh whose answers cost nothing, for tests of everything but the numerics and
for measuring what the mesh itself costs.  `python -m services.engine.twin.deterministic_model FOLDER` writes one.
"""

import json
import sys
from pathlib import Path

MODEL_TYPE = "pdmesh_deterministic"
VOCAB_SIZE = 258
_END = "<|end|>"
_UNKNOWN = "<|unknown|>"
_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def write_deterministic_model(folder: Path) -> Path:
    """Write the folder (made if missing) and return it. Token ids 0..255 are bytes, 256 ends a text, 257 is unused."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, special=True), AddedToken(_UNKNOWN, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "config.json", {"model_type": MODEL_TYPE, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 8192}
    )
    _write(folder / "tokenizer_config.json", {"chat_template": _TEMPLATE, "eos_token": _END})
    _write(folder / "generation_config.json", {"eos_token_id": 256})
    return folder


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    write_deterministic_model(Path(sys.argv[1]))
