"""`pdmesh bench prefixes`: a slice of a Mooncake trace, with the prefix cache and without."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import msgspec
import uvloop
from rich.console import Console

from common.clock import SystemClock
from common.config.types import DType
from common.errors import ConfigError
from services.bench.load.stream import LoadRequest
from services.bench.occasion import this_occasion
from services.bench.policies.mesh_system import read_model_facts
from services.bench.prefixes.meshes import Meshes, Variant, run_variants
from services.bench.prefixes.prompts import Scale, bound_of, load_of, scaled_slice
from services.bench.prefixes.rows import Slice, prefixes_summary, variant_rows
from services.bench.table import rows_table
from services.cli.bench.progress import bench_progress
from services.cli.flags import data_folder
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable, write_rows
from services.launch.model import prepare_model
from services.simulator.workload.known import find_trace
from services.simulator.workload.mooncake import read_mooncake

_TRACE: Final = "mooncake_conversation"
_SYSTEMS: Final = ("pd", "two_d")
_COLUMNS: Final = {
    "system": "system",
    "prefix cache": "prefix_cache",
    "hit rate": "hit_rate",
    "LRU bound": "hit_rate_lru_bound",
    "bound": "hit_rate_bound",
    "TTFT mean s": "ttft_mean_s",
    "TTFT P99 s": "ttft_p99_s",
    "TBT P99 s": "tbt_p99_s",
    "req/s": "throughput_rps",
}


class PrefixesFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh bench prefixes`."""

    json: Path
    trace: Path | None
    data: Path | None
    quick: bool
    model: str
    dtype: str
    kv_memory: str
    requests: int
    rate: float
    rounds: int


def run_prefixes(flags: PrefixesFlags, environ: Mapping[str, str]) -> ExitCode:
    """Measure, write the JSON, show it. Raises PdmeshError."""
    check_writable("--json", flags.json)
    dtype = _dtype(flags.dtype)
    file, scale = _trace_file(flags, environ), Scale()
    slice_ = scaled_slice(read_mooncake(file, keep_hash_ids=True), 8 if flags.quick else flags.requests, scale)
    rate, rounds = (8.0, 1) if flags.quick else (flags.rate, flags.rounds)
    occasion = this_occasion()
    with bench_progress(Console(stderr=True)) as on_step:
        on_step("preparing the model")
        folder = uvloop.run(prepare_model(flags.model, environ))
        vocab_size = read_model_facts(folder).vocab_size
        vocab = range(min(1000, vocab_size // 2), vocab_size)
        meshes = Meshes(flags.model, folder, dtype, flags.kv_memory)

        def load(seed: int) -> tuple[LoadRequest, ...]:
            return load_of(slice_, scale, vocab, rate, seed)

        variants = tuple(Variant(system, is_on) for system in _SYSTEMS for is_on in (True, False))
        samples = uvloop.run(run_variants(meshes, variants, load, rounds, environ, SystemClock(), on_step))
    asked, size = load(0), meshes.block_size
    lru_bounds = {system: bound_of(asked, size, blocks) for system, blocks in samples.blocks.items()}
    served = Slice(asked, rate, bound_of(asked, size), lru_bounds, flags.model, flags.dtype, flags.kv_memory)
    rows = variant_rows(samples.answers, served)
    command = "pdmesh bench prefixes" + " --quick" * flags.quick
    write_rows(flags.json, command, rows, prefixes_summary(samples.answers, served), occasion)
    Console().print(rows_table("Prefixes that recur", rows, _COLUMNS))
    return ExitCode.DONE


def _trace_file(flags: PrefixesFlags, environ: Mapping[str, str]) -> Path:
    if flags.trace is not None:
        return flags.trace
    data = data_folder(flags.data, environ)
    if data is None:
        raise ConfigError("give a Mooncake trace with --trace, or a folder with the public ones with --data")
    return find_trace(data, _TRACE)


def _dtype(text: str) -> DType:
    try:
        return cast(DType, msgspec.convert(text, DType))
    except msgspec.ValidationError as error:
        raise ConfigError(f"--dtype {text!r}: {error}") from error
