"""P-D = aggregated: everything that the API can do, with the real model in float32, whatever the split."""

from pathlib import Path

import pytest

from services.bench.parity.questions import QUESTIONS
from services.bench.parity.run import ask_everything
from services.cli.bench.parity import parity_mesh
from tests.mesh.processes import processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


async def test_every_answer_is_the_one_without_a_split(smollm2_folder: Path) -> None:
    steps: list[str] = []
    async with processes(smollm2_folder, parity_mesh("smollm2")) as mesh:
        outcomes = await ask_everything(mesh.client, "smollm2", QUESTIONS, steps.append)
    assert steps == [question.name for question in QUESTIONS]
    strange = [
        f"{o.question}, split {o.split}, streamed {o.streamed}: {o.difference}" for o in outcomes if o.difference
    ]
    assert not strange, "\n".join(strange)
    split = [outcome for outcome in outcomes if "prefill=p0" in outcome.placement]
    assert len(split) >= 0.6 * len(outcomes), "most answers had a part computed by P"
