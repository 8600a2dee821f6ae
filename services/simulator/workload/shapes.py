"""The length distributions that the project has built in: numbers measured from public files, not the files."""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.quantiles import QuantileTable


class LengthShape(msgspec.Struct, frozen=True):
    """How long prompts and outputs are; each is drawn without regard to the other."""

    name: str
    measured_from: str
    prompt: QuantileTable
    output: QuantileTable


AZURE_CONV = LengthShape(
    name="azure_conv",
    measured_from="19,366 rows of AzureLLMInferenceTrace_conv.csv (Azure/AzurePublicDataset, CC-BY-4.0)",
    prompt=QuantileTable((2, 29, 181, 207, 396, 703, 1020, 1071, 1189, 2734, 4076, 4083, 4090, 4142, 6179, 14050)),
    output=QuantileTable((7, 16, 41, 54, 85, 103, 129, 177, 395, 424, 433, 451, 509, 601, 954, 1000)),
)
"""A chat service. Mean/p50/p90/p99/max measured in the file: prompts 1155/1020/2734/4142/14050, outputs
211/129/424/601/1000; the rank correlation between both is 0.07."""

AZURE_CONV_FIRST1000 = LengthShape(
    name="azure_conv_first1000",
    measured_from="the first 1,000 rows of AzureLLMInferenceTrace_conv.csv (Azure/AzurePublicDataset, CC-BY-4.0)",
    prompt=QuantileTable((2, 27, 126, 181, 382, 474, 999, 1040, 1118, 1380, 4074, 4080, 4085, 4096, 4132, 4145)),
    output=QuantileTable((12, 16, 36, 55, 93, 154, 203, 379, 401, 428, 436, 451, 498, 585, 739, 1000)),
)
"""The slice that published comparisons use. Measured: prompts 1014/999/1380/4096/4145, outputs 247/203/428/585/1000."""

PREFILL_HEAVY = LengthShape(
    name="prefill_heavy",
    measured_from="the first 1,000 rows of Vidur's arxiv_summarization lengths (microsoft/vidur, MIT)",
    prompt=QuantileTable((1, 48, 736, 1186, 1954, 2435, 2708, 2997, 3341, 3679, 3753, 3804, 3849, 3937, 3975, 4009)),
    output=QuantileTable((5, 32, 61, 78, 113, 147, 166, 190, 253, 397, 500, 881, 2076, 3098, 3480, 3716)),
)
"""Summaries of papers: long prompts, short outputs. Measured: prompts 2567/2708/3679/3937/4009, outputs
297/166/397/3098/3716. In the file prompt and output sum to at most 4096 (its long outputs follow short prompts, linear
correlation -0.46); drawn apart, as here, they can reach 7725."""

DECODE_HEAVY = LengthShape(
    name="decode_heavy",
    measured_from="the first 1,000 ShareGPT lengths of Helix (Thesys-lab/Helix-ASPLOS25, Apache-2.0)",
    prompt=QuantileTable((4, 4, 5, 7, 11, 16, 22, 34, 68, 278, 450, 550, 727, 863, 1018, 1021)),
    output=QuantileTable((4, 12, 34, 68, 131, 187, 216, 247, 305, 413, 457, 475, 503, 597, 671, 737)),
)
"""Chat with short questions: most tokens are output. Measured: prompts 94/22/278/863/1021, outputs
229/216/413/597/737."""

SHAPES: Mapping[str, LengthShape] = MappingProxyType(
    {shape.name: shape for shape in (AZURE_CONV, AZURE_CONV_FIRST1000, PREFILL_HEAVY, DECODE_HEAVY)}
)


def shape_named(name: str) -> LengthShape:
    """The built-in shape of this name. Raises WorkloadError, with all names, where there is none."""
    if name not in SHAPES:
        raise WorkloadError(f"no built-in workload {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]
