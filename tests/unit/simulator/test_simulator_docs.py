"""docs/simulator.md: its example is the file, gives what is shown, and every key and option stands in it."""

import io
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from services.cli.simulate import SimulateFlags, run_simulate
from services.simulator.cluster.file import load_cluster_file
from services.simulator.cluster.keys import AssumedKeys, ClusterKeys, InstanceKeys, LinkKeys, SystemKeys
from services.simulator.runs.sweep import max_throughput
from services.simulator.runs.system import serve
from services.simulator.workload_choice import WorkloadChoice, choose_workload

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "simulator.md").read_text(encoding="utf-8")
COMMAND = "pdmesh simulate --cluster docs/examples/a100-a10.yaml --trace synthetic:azure_conv_first1000"


def shown(mark: str) -> str:
    block = PAGE.partition(f"<!-- {mark}: begin -->\n")[2].partition(f"<!-- {mark}: end -->")[0]
    return re.sub("^    ", "", block, flags=re.MULTILINE).strip("\n")


def throughputs(text: str) -> dict[str, float]:
    """By system, as the table of runs has them."""
    table = text.partition("\nruns")[2].partition("\ninstances")[0]
    return {
        name: float(value) for name, value in re.findall(r"^ (\w[\w -]*?) +(\d+\.\d\d)  +\S+ s", table, re.MULTILINE)
    }


def test_the_page_shows_the_example_file():
    assert shown("cluster") == (DOCS / "examples" / "a100-a10.yaml").read_text().strip("\n")


def test_the_example_gives_what_the_page_shows():
    assert f"    {COMMAND}\n" in PAGE
    printed = throughputs(shown("output"))
    assert list(printed) == ["cronus", "dp", "disagg low-high", "disagg high-low"]
    # The search for the weights of dp is left out, which would take seconds: those that it found are on the page.
    dp = printed.pop("dp")
    out = io.StringIO()
    cluster, trace = DOCS / "examples" / "a100-a10.yaml", "synthetic:azure_conv_first1000"
    flags = SimulateFlags(cluster=cluster, trace=trace, policy="cronus,disagg")
    run_simulate(flags, {}, Console(file=out, width=100), Console(file=io.StringIO()))
    # A better policy may move them a little: then run the command of the page again, with COLUMNS=100.
    assert throughputs(out.getvalue()) == pytest.approx(printed, rel=0.03)
    (share,) = re.findall(r"share of a10 +(\S+)", shown("output"))
    (system,) = load_cluster_file(cluster).systems(["dp"])
    tuned = system.with_weights({"a10": float(share), "a100": 1 - float(share)})
    found = max_throughput(tuned, choose_workload(WorkloadChoice(trace)), serve)
    assert found.throughput_rps == pytest.approx(dp, rel=0.03)


@pytest.mark.parametrize("keys", [ClusterKeys, InstanceKeys, SystemKeys, LinkKeys, AssumedKeys])
def test_every_key_is_explained(keys):
    missing = [field.name for field in msgspec.structs.fields(keys) if f"`{field.name}`" not in PAGE]
    assert not missing


def test_every_option_is_explained():
    names = [field.name.replace("_", "-") for field in msgspec.structs.fields(SimulateFlags)]
    assert not [name for name in names if f"`--{name}" not in PAGE]
