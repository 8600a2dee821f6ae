"""A prepared folder to a model in memory."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from common.config.types import DType
from common.errors import ModelError
from services.engine.loading.quiet import quiet_transformers

_DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(folder: Path, dtype: DType, device: str, attn_implementation: str) -> PreTrainedModel:
    """Load for inference: evaluation mode, no gradients, weights cast to `dtype` on `device`.

    `attn_implementation` is a name that transformers knows or that was registered before.  Never reaches for the
    network and never runs code from the folder.  Raises ModelError where the folder does not hold the whole model:
    a weight that is missing would be random, and the answers wrong without a word.
    """
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=_DTYPES[dtype],
                attn_implementation=attn_implementation,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            model = model.to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model folder {str(folder)!r} cannot be loaded as {dtype} on {device!r} "
            f"({type(error).__name__}: {error}); it needs config.json and safetensors of one causal LM"
        ) from error
    if absent := sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"])):
        raise ModelError(
            f"model folder {str(folder)!r} lacks {len(absent)} weights that its config.json asks for, "
            f"{absent[0]!r} first; fetch or convert the model again"
        )
    model.eval()
    model.requires_grad_(False)
    return model
