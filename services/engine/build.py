"""From an instance's configuration to a runner: loads the model, sizes the KV cache."""

import json
from pathlib import Path

import torch

from common.compiled import user_cache
from common.config.sizes import parse_size
from common.config.types import DType, InstanceConfig
from common.errors import ModelError
from common.model_store import fingerprint
from services.engine.kv.paged_kv import num_blocks_for
from services.engine.model.device import check_this_process, torch_device
from services.engine.runner import Runner
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.engine.twin.deterministic_model import MODEL_TYPE, VOCAB_SIZE
from services.scheduling.continuous import BatchLimits


def build_instance_runner(instance: InstanceConfig, dtype: DType, folder: Path) -> Runner:
    """The runner of `instance` for the model in `folder`; takes seconds. Raises ModelError or ConfigError."""
    try:
        model_type = dict(json.loads((folder / "config.json").read_text())).get("model_type")
    except (OSError, TypeError, ValueError) as error:
        raise ModelError(f"{str(folder)!r} holds no readable config.json: {error}") from error
    kv_memory_bytes = parse_size(instance.kv_memory)
    if model_type == MODEL_TYPE:
        layout = deterministic_layout(block_size=instance.block_size, order=instance.order, layers=4)
        num_blocks = min(num_blocks_for(layout, kv_memory_bytes), 16_384)
        return DeterministicRunner(layout, num_blocks, vocab_size=VOCAB_SIZE, context_length=8192)
    return _torch_runner(instance, dtype, folder, kv_memory_bytes)


def prepare_process(instance: InstanceConfig) -> None:
    """Give torch the instance's threads. Called once, by a composition root, in a process pinned already.

    Raises ConfigError for a device that this process does not have.
    """
    check_this_process(instance)
    if instance.threads is not None:
        torch.set_num_threads(instance.threads)


def _torch_runner(instance: InstanceConfig, dtype: DType, folder: Path, kv_memory_bytes: int) -> Runner:
    # Imported here: transformers takes seconds, and the deterministic model does without it.
    from services.engine.loading.load import load_model
    from services.engine.model.attention import ATTENTION_NAME, register_attention
    from services.engine.model.torch_runner import build_runner
    from services.engine.native.kernels import Kernels
    from services.engine.sampling.sampling import Sampler

    register_attention()
    device = torch_device(instance.device)
    on_cpu = torch.device(device).type == "cpu"
    return build_runner(
        load_model(folder, instance.dtype or dtype, device, ATTENTION_NAME),
        Sampler(),
        fingerprint=fingerprint(folder),
        block_size=instance.block_size,
        order=instance.order,
        kv_memory_bytes=kv_memory_bytes,
        kernels=Kernels.compiled(cache) if on_cpu and (cache := user_cache()) is not None else None,
    )


def prefill_limits(instance: InstanceConfig) -> BatchLimits:
    """One prompt per step, whole or in chunks; as many jobs held as there is room for."""
    return BatchLimits(
        block_size=instance.block_size,
        max_sequences=instance.max_batch,
        chunk=instance.prefill_chunk,
        prompts_per_step=1,
    )


def decode_limits(instance: InstanceConfig) -> BatchLimits:
    """Decodes first, then chunks, up to the budget."""
    return BatchLimits(block_size=instance.block_size, max_sequences=instance.max_batch, budget=instance.budget)
