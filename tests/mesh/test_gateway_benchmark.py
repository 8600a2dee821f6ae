"""`pdmesh bench gateway --quick`: the real gateway's process, its instant workers, the raw handler, one report."""

import json
import os
from pathlib import Path

import pytest

from services.cli.bench.gateway import GatewayFlags, run_gateway
from services.cli.outcome import ExitCode

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("PDMESH_")}


@pytest.mark.slow
def test_the_gateway_is_measured_beside_the_raw_handler(tmp_path: Path) -> None:
    out = tmp_path / "gateway.json"
    assert run_gateway(GatewayFlags(out, quick=True), ENVIRON) is ExitCode.DONE
    report = json.loads(out.read_text())
    served = [row for row in report["rows"] if row.get("phase") == "serve" and row["system"] in ("pdmesh", "aiohttp")]
    kinds = {(row["system"], row["connections"], row["streaming"], row["output_tokens"]) for row in served}
    loads = [(1, False, 1), (16, False, 1), (1, True, 32), (16, True, 32), (16, False, 32)]
    assert kinds == {(system, *load) for system in ("pdmesh", "aiohttp") for load in loads}
    assert all(row["p50_ms"] > 0 and row["cpu_us_per_answer"] >= 0 for row in served)
    ours = [row for row in served if row["system"] == "pdmesh" and row["streaming"]]
    assert all(row["events_per_s"] == 32 * row["streams_per_s"] for row in ours)
    lags = {row["process"] for row in report["rows"] if row.get("phase") == "loop_lag"}
    assert lags >= {"gateway"}
    assert {"added_p50_ms", "requests_per_s_c16", "streams_per_s_c16"} <= report["summary"].keys()
    # Routers are measured where they are installed; else the report says why not.
    said = {row["system"] for row in report["rows"]}
    assert said >= {"pdmesh", "aiohttp", "vllm-router", "smg"}
