"""The goals as ratios, from what was measured in the same rounds."""

from collections.abc import Sequence

from services.bench.report import Row
from services.bench.transfer.cases import MEMCPY, MIB, LayoutCase, TakeCase
from services.bench.transfer.kernels import CONVERSIONS, THREADS
from services.bench.transfer.peers.raw_ring import RawRing
from services.bench.transfer.peers.raw_tcp import RawTcp
from services.bench.transfer.rates import Rates


def rate_ratios(rates: Rates) -> dict[str, float]:
    """Of the largest size, without checksums but for their cost."""
    size, ratios = rates.size_bytes, dict[str, float]()
    schemes = sorted({case.scheme for case in rates.samples if isinstance(case, TakeCase)})
    for scheme in schemes:
        plain = TakeCase(scheme, size, LayoutCase.IDENTITY, checksum=False)
        summed = TakeCase(scheme, size, LayoutCase.IDENTITY, checksum=True)
        full, cast = (
            TakeCase(scheme, size, layout, checksum=False) for layout in (LayoutCase.FULL, LayoutCase.FULL_CAST)
        )
        found = {
            f"{scheme}_over_raw_tcp": rates.over_raw(plain, RawTcp.name),
            f"{scheme}_over_raw_ring": rates.over_raw(plain, RawRing.name),
            f"{scheme}_over_memcpy": rates.over_raw(plain, MEMCPY),
            f"full_over_identity_{scheme}": rates.over(full, plain),
            f"full_cast_over_identity_{scheme}": rates.over(cast, plain),
            f"checksum_over_none_{scheme}": rates.over(summed, plain),
        }
        ratios |= {f"{name}_{size // MIB}MiB": ratio.median for name, ratio in found.items()}
    return ratios


def kernel_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """For each conversion the faster kernel's slower pass over `copy_`, both with the most threads."""
    ratios: dict[str, float] = {}
    for conversion in CONVERSIONS:
        passes: dict[str, list[float]] = {}
        for row in rows:
            if row["conversion"] == conversion and row["threads"] == max(THREADS) and row["action"] != "copy":
                passes.setdefault(str(row["kernel"]), []).append(_number(row, "over_copy"))
        ratios[f"kernel_{conversion}_over_copy"] = max(min(found) for found in passes.values())
    return ratios


def other_ratios(plan: Row, pipeline: Sequence[Row], layerwise: Sequence[Row]) -> dict[str, float]:
    """Planning, overlap, and what is left after the last layer."""
    return {
        "plan_ms": _number(plan, "plan_ms"),
        "bind_ms": _number(plan, "bind_ms"),
        **{f"pipeline_over_slowest_stage_{row['backend']}": _number(row, "over_slowest_stage") for row in pipeline},
        **{
            f"layerwise_tail_over_transfer_{row['backend']}_{row['prompt_tokens']}": _number(row, "tail_over_transfer")
            for row in layerwise
        },
    }


def _number(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, float)
    return value
