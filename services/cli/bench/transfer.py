"""`pdmesh bench`: progress on stderr, tables for a person, JSON for the record."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import uvloop
from rich.console import Console

from services.bench.report import Report, Row, write_report
from services.bench.table import rows_table
from services.bench.transfer.cases import QUICK, WHOLE
from services.bench.transfer.run import TransferBench, run_transfer_bench
from services.bench.transfer.stage import Heard
from services.cli.bench.progress import bench_progress
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable

_TABLES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "rate": {
            "backend": "backend",
            "MiB": "size_bytes",
            "layout": "layout",
            "xxh3": "checksum",
            "GB/s": "gb_per_s",
            "÷memcpy": "over_memcpy",
            "÷raw tcp": "over_raw_tcp",
            "CPU s/GB": "cpu_s_per_gb",
        },
        "kernel": {
            "kernel": "kernel",
            "threads": "threads",
            "conversion": "conversion",
            "action": "action",
            "GB/s read+written": "read_written_gb_per_s",
            "÷copy_": "over_copy",
        },
        "plan": {
            "layers": "layers",
            "blocks": "blocks",
            "plan ms": "plan_ms",
            "bind ms": "bind_ms",
            "pack GB/s": "pack_gb_per_s",
            "unpack GB/s": "unpack_gb_per_s",
        },
        "pipeline": {
            "backend": "backend",
            "MiB": "size_bytes",
            "pack s": "pack_s",
            "wire s": "wire_s",
            "unpack s": "unpack_s",
            "whole s": "whole_s",
            "÷slowest": "over_slowest_stage",
            "÷CPU bound": "over_cpu_bound",
        },
        "layerwise": {
            "backend": "backend",
            "tokens": "prompt_tokens",
            "transfer s": "transfer_s",
            "tail s": "tail_s",
            "tail÷transfer": "tail_over_transfer",
            "where": "where",
        },
    }
)
"""Headings and columns of each kind of row, as far as a terminal has room."""


class TransferFlags(msgspec.Struct, frozen=True):
    """The flags of `pdmesh bench transfer`."""

    json: Path
    peers: bool
    quick: bool
    segment_bytes: int


def run_transfer(flags: TransferFlags) -> ExitCode:
    """Measure, write the JSON, show it. Raises PdmeshError."""
    console = Console(stderr=True)
    command = f"pdmesh bench transfer{' --peers' * flags.peers}{' --quick' * flags.quick}"
    command += f" --segment-bytes {flags.segment_bytes}"
    bench = TransferBench(command, QUICK if flags.quick else WHOLE, flags.segment_bytes, flags.peers)
    check_writable("--json", flags.json)
    with bench_progress(console) as on_step:
        report = uvloop.run(run_transfer_bench(bench, Heard(on_step, lambda note: console.print(note, markup=False))))
    write_report(report, flags.json)
    _show(report, Console())
    return ExitCode.DONE


def _show(report: Report, console: Console) -> None:
    for kind, columns in _TABLES.items():
        console.print(rows_table(kind, [row for row in report.rows if row["kind"] == kind], columns))
    ratios: list[Row] = [{"ratio": name, "value": value} for name, value in report.summary.items()]
    console.print(rows_table("summary", ratios, {"ratio": "ratio", "value": "value"}))
