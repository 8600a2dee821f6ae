"""From a name to a folder, and what names its contents."""

import hashlib
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from common.errors import ModelError
from common.model_store import (
    BUILT_IN,
    FORMAT,
    MARKER,
    GgufSource,
    HubSource,
    ModelLocation,
    NeedsPreparation,
    Prepared,
    cache_root,
    fingerprint,
    resolve,
)


def make_whole(folder: Path, format_version: int = FORMAT) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / MARKER).write_bytes(msgspec.json.encode(Prepared(format_version, "a test")))


# ---------------------------------------------------------------- the cache's place


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PDMESH_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"PDMESH_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/pdmesh"),
        ({"HOME": "/c"}, "/c/.cache/pdmesh"),
    ],
)
def test_cache_root_follows_the_environment(environment, expected):
    assert cache_root(environment) == Path(expected)


def test_cache_root_without_any_home_says_what_to_set():
    with pytest.raises(ModelError, match="set PDMESH_CACHE"):
        cache_root({})


# ---------------------------------------------------------------- resolving


def test_built_in_needs_preparation_until_its_folder_is_whole(tmp_path):
    needed = resolve("smollm2", tmp_path)
    folder = tmp_path / "models" / "smollm2-b179c9523d0e6a0f"
    assert needed == NeedsPreparation("smollm2", BUILT_IN["smollm2"], folder)
    make_whole(folder)
    assert resolve("smollm2", tmp_path) == ModelLocation("smollm2", folder)


def test_a_folder_without_its_marker_is_never_used(tmp_path):
    folder = tmp_path / "models" / "smollm2-b179c9523d0e6a0f"
    make_whole(folder)
    (folder / MARKER).unlink()
    assert isinstance(resolve("smollm2", tmp_path), NeedsPreparation)


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"[]", b'{"format": 99, "source": ""}'])
def test_a_folder_with_a_broken_or_older_marker_is_never_used(tmp_path, content):
    folder = tmp_path / "models" / "smollm2-b179c9523d0e6a0f"
    make_whole(folder)
    (folder / MARKER).write_bytes(content)
    assert isinstance(resolve("smollm2", tmp_path), NeedsPreparation)


def test_a_folder_whose_links_lead_nowhere_is_never_used(tmp_path):
    folder = tmp_path / "models" / "org--name"
    make_whole(folder)
    weights = tmp_path / "weights"
    weights.touch()
    (folder / "model.safetensors").symlink_to(weights)
    assert isinstance(resolve("org/name", tmp_path), ModelLocation)
    weights.unlink()
    assert isinstance(resolve("org/name", tmp_path), NeedsPreparation)


def test_a_gguf_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "Tiny.Q4.gguf"
    path.write_bytes(b"first")
    sha256 = hashlib.sha256(b"first").hexdigest()
    needed = resolve(str(path), tmp_path)
    assert isinstance(needed, NeedsPreparation)
    assert needed.source == GgufSource(path, sha256)
    assert needed.folder == tmp_path / "models" / f"Tiny.Q4-{sha256[:16]}"
    make_whole(needed.folder)
    assert resolve(str(path), tmp_path) == ModelLocation(str(path), needed.folder)
    path.write_bytes(b"second")
    assert isinstance(resolve(str(path), tmp_path), NeedsPreparation)


def test_a_folder_with_a_config_is_used_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path), tmp_path / "cache") == ModelLocation(str(tmp_path), tmp_path)


def test_a_hub_id_goes_to_the_cache(tmp_path):
    needed = resolve("org/name-1.5", tmp_path)
    assert needed == NeedsPreparation("org/name-1.5", HubSource("org/name-1.5"), tmp_path / "models" / "org--name-1.5")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm", "did you mean 'smollm2'"),
        ("", "built-in name"),
        ("a/b/c", "hub id like 'org/name'"),
        ("../x", "hub id like 'org/name'"),
        ("/nowhere/x.gguf", "No such file"),
    ],
)
def test_an_unknown_name_says_what_was_allowed(tmp_path, name, words):
    with pytest.raises(ModelError, match=words) as caught:
        resolve(name, tmp_path)
    assert repr(name) in str(caught.value)


def test_a_folder_without_config_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"without config\.json"):
        resolve(str(tmp_path), tmp_path)


def test_the_store_needs_no_torch():
    code = "import sys, common.model_store; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- fingerprint


def write_model(folder: Path, config: dict[str, object], payload: bytes, tensor: str = "weight") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({tensor: {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}})
    content = struct.pack("<Q", len(header)) + header.encode() + payload
    (folder / "model.safetensors").write_bytes(content)
    return folder


CONFIG = {"model_type": "llama", "hidden_size": 64, "text_config": {"layers": 2}}
PAYLOAD = random.Random(0).randbytes(1_000_000)


def test_fingerprint_is_stable_across_releases(tmp_path):
    """A mesh may mix releases, so that this constant must never change without a new wire version."""
    assert fingerprint(write_model(tmp_path / "a", CONFIG, PAYLOAD)) == "2c6cd719f610edd8"


def test_fingerprint_ignores_where_and_by_what_a_model_was_saved(tmp_path):
    first = write_model(tmp_path / "a", CONFIG, PAYLOAD)
    noisy = {
        "text_config": {"dtype": "bfloat16", "layers": 2},
        "hidden_size": 64,
        "model_type": "llama",
        "transformers_version": "9",
        "torch_dtype": "float16",
        "_name_or_path": "elsewhere",
    }
    second = write_model(tmp_path / "b", noisy, PAYLOAD)
    (second / "tokenizer.json").write_text("{}")
    assert fingerprint(first) == fingerprint(second)


def test_fingerprint_tells_configs_names_headers_sizes_and_weights_apart(tmp_path):
    other_weights = random.Random(1).randbytes(1_000_000)
    end_only = PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1])
    folders = [
        write_model(tmp_path / "a", CONFIG, PAYLOAD),
        write_model(tmp_path / "b", CONFIG | {"hidden_size": 65}, PAYLOAD),
        write_model(tmp_path / "c", CONFIG | {"text_config": {"layers": 3}}, PAYLOAD),
        write_model(tmp_path / "d", CONFIG, PAYLOAD, tensor="renamed"),
        write_model(tmp_path / "e", CONFIG, PAYLOAD[:-1]),
        write_model(tmp_path / "f", CONFIG, other_weights),
        write_model(tmp_path / "g", CONFIG, end_only),
        write_model(tmp_path / "h", CONFIG, b""),
    ]
    renamed = write_model(tmp_path / "i", CONFIG, PAYLOAD)
    (renamed / "model.safetensors").rename(renamed / "other.safetensors")
    assert len({fingerprint(folder) for folder in (*folders, renamed)}) == 9


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 10**9) + b"{}"])
def test_fingerprint_refuses_a_torn_file(tmp_path, content):
    folder = write_model(tmp_path / "a", CONFIG, PAYLOAD)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="no whole safetensors file"):
        fingerprint(folder)


def test_fingerprint_needs_weights_and_config(tmp_path):
    folder = write_model(tmp_path / "a", CONFIG, PAYLOAD)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        fingerprint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"no usable config\.json"):
        fingerprint(folder)
