"""docs/planning.md: its example is the file, gives what is shown, and every key and option stands in it."""

import io
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from services.cli.plan import PlanFlags, run_plan
from services.planner.files.plan_keys import LengthKeys, LimitKeys, MachineKeys, PlanKeys, TemplateKeys, WorkloadKeys

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "planning.md").read_text(encoding="utf-8")
EXAMPLE = DOCS / "examples" / "plan-a100-a10.yaml"


def shown(mark: str) -> str:
    block = PAGE.partition(f"<!-- {mark}: begin -->\n")[2].partition(f"<!-- {mark}: end -->")[0]
    return re.sub("^    ", "", block, flags=re.MULTILINE).strip("\n")


def closed_forms(text: str) -> dict[str, float]:
    """The most of each serving."""
    found = re.findall(r"^ *\d+ +(\w+) .*?  +([\d.,]+)  ", text, re.MULTILINE)
    best: dict[str, float] = {}
    for serving, rate in found:
        best[serving] = max(best.get(serving, 0.0), float(rate.replace(",", "")))
    return best


def test_the_page_shows_the_example_file():
    assert shown("file") == EXAMPLE.read_text().strip("\n")


def test_the_example_gives_what_the_page_shows():
    printed = closed_forms(shown("output"))
    assert set(printed) == {"aggregated", "disaggregated", "cronus"}
    out = io.StringIO()
    flags = PlanFlags(cluster=EXAMPLE, runnable=True, no_simulate=True)
    run_plan(flags, {}, Console(file=out, width=120), Console(file=io.StringIO()))
    # Better closed forms may move them a little: then run the command of the page again.
    assert closed_forms(out.getvalue()) == pytest.approx(printed, rel=0.03)


@pytest.mark.parametrize("keys", [PlanKeys, MachineKeys, TemplateKeys, WorkloadKeys, LengthKeys, LimitKeys])
def test_every_key_is_explained(keys):
    missing = [field.name for field in msgspec.structs.fields(keys) if f"`{field.name}`" not in PAGE]
    assert not missing


def test_every_option_is_explained():
    names = [field.name.replace("_", "-") for field in msgspec.structs.fields(PlanFlags) if field.name != "cluster"]
    assert not [name for name in names if f"`--{name}" not in PAGE]
