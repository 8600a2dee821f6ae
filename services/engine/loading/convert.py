"""GGUF to safetensors: dequantised once to float32, with the tokenizer, by transformers' own GGUF loader."""

import stat
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from common.errors import ModelError
from services.engine.loading.progress import PreparationProgress
from services.engine.loading.quiet import muted_stderr, quiet_transformers


def convert_gguf(gguf: Path, into: Path, progress: PreparationProgress) -> None:
    """Write config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    `into` exists.  tokenizer_config.json holds the chat template, where the file has one.  Raises ModelError where
    transformers cannot read the file; OSError and safetensors' errors where the disk fails.
    """
    progress.stage(f"dequantising {gguf.name} to float32")
    try:
        with quiet_transformers(), muted_stderr():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
    except Exception as error:  # the GGUF readers raise whatever their parsing runs into
        raise ModelError(
            f"transformers cannot read {str(gguf)!r} ({type(error).__name__}: {error}); "
            "give a whole GGUF file of an architecture that its GGUF loader supports"
        ) from error
    progress.stage("writing safetensors and tokenizer")
    _settle_special_tokens(model, tokenizer)
    with quiet_transformers():
        model.save_pretrained(into)
        tokenizer.save_pretrained(into, save_jinja_files=False)
    _share_permissions(into)


def _settle_special_tokens(model: Any, tokenizer: Any) -> None:
    """Make the generation config name the tokenizer's special tokens; its end token is the one that ends a turn."""
    generation = model.generation_config
    generation.bos_token_id = tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    # Else transformers takes the file as derived, and makes it anew from config.json at each load.
    generation._from_model_config = False


def _share_permissions(folder: Path) -> None:
    """safetensors makes its files readable by their owner only; a cache may have several users."""
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)
