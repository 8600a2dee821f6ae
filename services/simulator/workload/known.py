"""The public traces that results are given on. The project ships none: a user gives the folder; see docs/data.md."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from services.simulator.workload.errors import TraceError
from services.simulator.workload.lines import trace_sha256
from services.simulator.workload.readers import read_trace
from services.simulator.workload.requests import Workload


class KnownTrace(msgspec.Struct, frozen=True):
    """One public trace, or its first rows."""

    name: str
    file: str
    """What it is called in a user's folder; `.gz` may follow."""
    repository: str
    """On GitHub."""
    public_path: str
    """Where the repository keeps the whole."""
    licence: str
    rows: int
    sha256: str
    """Of the content, unpacked."""


KNOWN_TRACES: Mapping[str, KnownTrace] = MappingProxyType(
    {
        trace.name: trace
        for trace in (
            KnownTrace(
                name="azure_conv",
                file="AzureLLMInferenceTrace_conv.csv",
                repository="Azure/AzurePublicDataset",
                public_path="data/AzureLLMInferenceTrace_conv.csv",
                licence="CC-BY-4.0",
                rows=19366,
                sha256="2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
            ),
            KnownTrace(
                name="azure_conv_first1000",
                file="azure_conv_first1000.csv",
                repository="Azure/AzurePublicDataset",
                public_path="data/AzureLLMInferenceTrace_conv.csv",
                licence="CC-BY-4.0",
                rows=1000,
                sha256="199ec10343bc95825c0e49cdfccdd4abc79adb480760950469f440cf461bfbff",
            ),
            KnownTrace(
                name="mooncake_conversation",
                file="mooncake_conversation_first1000.jsonl",
                repository="kvcache-ai/Mooncake",
                public_path="FAST25-release/traces/conversation_trace.jsonl",
                licence="Apache-2.0",
                rows=1000,
                sha256="d289afab1294d376c92b3496d96c27f8f0e36893398fbda7957f3a40e37b70ba",
            ),
            KnownTrace(
                name="arxiv",
                file="arxiv_first1000.csv",
                repository="microsoft/vidur",
                public_path="data/processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
                licence="MIT",
                rows=1000,
                sha256="c5fdeb5805ca8c3dd64bb86cbe4d3aae32655167a79fbbcd4ff502278fb81b92",
            ),
            KnownTrace(
                name="sharegpt",
                file="sharegpt_lengths_first1000.csv",
                repository="Thesys-lab/Helix-ASPLOS25",
                public_path="simulator/trace_generator/length_data/shared_gpt_*.pkl",
                licence="Apache-2.0",
                rows=1000,
                sha256="ccc56488b98df5d8d52410208a5321994ef4bbbb4fc22399e867361c08be2061",
            ),
        )
    }
)


def known_trace(name: str) -> KnownTrace:
    """The public trace of this name. Raises TraceError, with all names, where there is none."""
    if name not in KNOWN_TRACES:
        raise TraceError(f"no known trace {name!r}; there are {', '.join(KNOWN_TRACES)}")
    return KNOWN_TRACES[name]


def find_trace(data_dir: Path, name: str) -> Path:
    """The file of a known trace, in `data_dir` or its sub-folder `traces`, plain or gzipped.

    Raises TraceError that says which files were looked for, and what the public source is.
    """
    trace = known_trace(name)
    files = (trace.file, f"{trace.file}.gz")
    for path in (folder / file for folder in (data_dir, data_dir / "traces") for file in files):
        if path.is_file():
            return path
    raise TraceError(
        f"no trace {name!r} in {data_dir} or {data_dir / 'traces'}: looked for {' and '.join(files)}, {trace.rows:,} "
        f"rows of {trace.public_path} in github.com/{trace.repository} ({trace.licence}); docs/data.md says how to "
        "make the file"
    )


def read_known(data_dir: Path, name: str) -> Workload:
    """A known trace, under its own name; `source` says whether the file is the very one that docs/data.md lists.

    Raises TraceError where it is not there, cannot be read, or has other than its number of rows.
    """
    trace = known_trace(name)
    path = find_trace(data_dir, name)
    workload = read_trace(path)
    rows = len(workload.requests)
    if rows != trace.rows:
        raise TraceError(f"{path}: {rows:,} rows where {name!r} has {trace.rows:,}; docs/data.md says how to cut it")
    verdict = (
        "checksum as in docs/data.md" if trace_sha256(path) == trace.sha256 else "checksum DIFFERS from docs/data.md"
    )
    source = f"{trace.repository} {trace.public_path} ({trace.licence}), {rows:,} rows, {verdict}"
    return msgspec.structs.replace(workload, name=name, source=source)
