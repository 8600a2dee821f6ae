"""Which layers are fused, and that proof decides it."""

import pytest
import torch
from transformers.models.llama import modeling_llama
from transformers.models.olmo import modeling_olmo

from common.kv.layout import KVOrder
from services.engine.cpu.fusing import FusedLayer, fuse_layers
from services.engine.cpu.prepack import can_pack
from services.engine.cpu.quicken import quicken
from services.engine.model.attention import ATTENTION_NAME, register_attention
from services.engine.model.torch_runner import build_runner
from services.engine.native.kernels import NO_NORM, Kernels
from services.engine.native.structs import HeadNorm
from services.engine.runner import StepItem
from tests.unit.engine.tiny_models import MODELS, WIDE_MODELS, RecordingSampler, make_model, sample_request

LAYERS = 3

pytestmark = pytest.mark.skipif(not can_pack(torch.float32, torch.device("cpu")), reason="this torch packs no weights")


def model_of(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    register_attention()
    model = make_model(*(MODELS | WIDE_MODELS)[name]).to(dtype)
    model.set_attn_implementation(ATTENTION_NAME)
    return model


@pytest.mark.parametrize("name", WIDE_MODELS)
def test_layers_of_the_llama_kind_are_fused(kernels: Kernels, name: str) -> None:
    model = model_of(name)
    assert fuse_layers(model, kernels) == LAYERS
    assert all(isinstance(layer, FusedLayer) for layer in model.model.layers)
    assert fuse_layers(model, kernels) == 0


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gemma2", "gemma3", "glm4-moe"])
def test_others_are_not(kernels: Kernels, name: str) -> None:
    """Heads of 8 elements; norms of queries and keys; norms and activations of another kind; half of a head rotated."""
    model = model_of(name)
    before = list(model.model.layers)
    assert fuse_layers(model, kernels) == 0
    assert list(model.model.layers) == before


def test_a_layer_that_computes_something_more_is_not_fused(kernels: Kernels) -> None:
    """All the parts and names of the Llama kind; only the numbers tell."""
    model = model_of("llama-wide")
    odd = model.model.layers[1]
    odd.mlp.register_forward_hook(lambda module, inputs, output: output * 1.25)
    assert fuse_layers(model, kernels) == LAYERS - 1
    assert model.model.layers[1] is odd


@pytest.fixture
def rotation_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llamas rotate as OLMo does: whatever the type of the model, by cosines and sines of float32."""
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_olmo.apply_rotary_pos_emb)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", modeling_olmo.OlmoRotaryEmbedding.forward)


@pytest.mark.usefixtures("rotation_in_float32")
@pytest.mark.parametrize(("dtype", "fused"), [(torch.float32, LAYERS), (torch.bfloat16, 0)])
def test_a_rotation_of_another_type_leaves_layers_plain(kernels: Kernels, dtype: torch.dtype, fused: int) -> None:
    assert fuse_layers(model_of("llama-wide", dtype), kernels) == fused


@pytest.mark.usefixtures("rotation_in_float32")
def test_answers_by_a_rotation_of_another_type(kernels: Kernels) -> None:
    tokens = tuple(range(3, 20))
    answers = []
    for native in (kernels, None):
        sampler = RecordingSampler()
        runner = build_runner(
            make_model(*WIDE_MODELS["llama-wide"]).to(torch.bfloat16),
            sampler,
            fingerprint="f",
            block_size=4,
            order=KVOrder.NHD,
            kv_memory_bytes=1 << 20,
            kernels=native,
        )
        for start, stop in ((0, 16), (16, 17)):
            runner.run([StepItem(tokens[start:stop], start, range(5), sample_request(stop))])
        answers.append(sampler.logits)
    actual, expected = answers
    assert (actual - expected).abs().max() <= 2e-2 * expected.abs().max()


class Watched(Kernels):
    """Knows how often it rotated."""

    rotations = 0

    def rotate(
        self,
        x: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        heads: tuple[int, int],
        norms: tuple[HeadNorm, HeadNorm] = (NO_NORM, NO_NORM),
    ) -> None:
        self.rotations += 1
        super().rotate(x, cosines, sines, heads, norms)


def test_norms_of_another_type_never_reach_the_kernels(kernels: Kernels) -> None:
    """Their addresses alone are handed over."""
    model, watched = model_of("qwen3-wide", torch.bfloat16), Watched(kernels.library)
    for layer in model.model.layers:
        norm = layer.self_attn.q_norm.float()
        norm.register_forward_hook(lambda module, inputs, output: output.to(torch.bfloat16))
    assert fuse_layers(model, watched) == 0
    assert watched.rotations == 0


def test_quicken_packs_what_it_does_not_fuse(kernels: Kernels) -> None:
    model = model_of("llama-wide")
    assert quicken(model, kernels)
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert not quicken(model, kernels), "nothing is left to do"


def test_float16_stays_as_it_is(kernels: Kernels) -> None:
    model = model_of("llama-wide", torch.float16)
    assert not quicken(model, kernels)
    assert [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize(("start", "blocks"), [(0, (99,)), (0, (-1,)), (17, (0, 99)), (17, (-3, 1))])
def test_blocks_that_the_cache_does_not_have_are_refused(kernels: Kernels, start: int, blocks: tuple[int, ...]) -> None:
    """As torch does; the C++ side would write there."""
    runner = build_runner(
        make_model(*WIDE_MODELS["llama-wide"]),
        RecordingSampler(),
        fingerprint="f",
        block_size=16,
        order=KVOrder.NHD,
        kv_memory_bytes=1 << 20,
        kernels=kernels,
    )
    with pytest.raises(ValueError, match=r"must be in \[0, "):
        runner.run([StepItem(tokens=(1,), start=start, blocks=blocks)])
