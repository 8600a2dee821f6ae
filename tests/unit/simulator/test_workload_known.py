import gzip
import hashlib
from pathlib import Path

import pytest

from services.simulator.workload.errors import TraceError
from services.simulator.workload.known import KNOWN_TRACES, find_trace, read_known
from services.simulator.workload.lines import trace_sha256

HELIX_FILE = "sharegpt_lengths_first1000.csv"
HELIX_TEXT = "input_tokens,output_tokens\n" + "3,4\n" * 1000


@pytest.mark.parametrize("folder", ["", "traces"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_trace_is_found_in_the_folder_or_its_traces_plain_or_packed(tmp_path, folder, ending):
    path = tmp_path / folder / f"{HELIX_FILE}{ending}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(HELIX_TEXT.encode()) if ending else HELIX_TEXT.encode())
    assert find_trace(tmp_path, "sharegpt") == path
    assert len(read_known(tmp_path, "sharegpt").requests) == 1000


def test_the_folder_itself_comes_first(tmp_path):
    (tmp_path / "traces").mkdir()
    for path in (tmp_path / "traces" / HELIX_FILE, tmp_path / f"{HELIX_FILE}.gz"):
        path.touch()
    assert find_trace(tmp_path, "sharegpt") == tmp_path / f"{HELIX_FILE}.gz"


@pytest.mark.parametrize("name", KNOWN_TRACES)
def test_a_trace_that_is_not_there(tmp_path, name):
    trace = KNOWN_TRACES[name]
    with pytest.raises(TraceError) as caught:
        find_trace(tmp_path / "absent", name)
    message = str(caught.value)
    for part in (name, str(tmp_path / "absent"), trace.file, trace.repository, trace.licence, f"{trace.rows:,} rows"):
        assert part in message


def test_the_five_names():
    names = ["azure_conv_first1000", "azure_conv", "mooncake_conversation", "arxiv", "sharegpt"]
    assert sorted(KNOWN_TRACES) == sorted(names)
    with pytest.raises(TraceError, match="no known trace 'azure'; there are azure_conv, azure_conv_first1000"):
        find_trace(Path(), "azure")


def test_a_known_trace_says_where_it_is_from_and_that_its_content_differs(tmp_path):
    (tmp_path / HELIX_FILE).write_text(HELIX_TEXT)
    workload = read_known(tmp_path, "sharegpt")
    assert workload.name == "sharegpt"
    assert "Thesys-lab/Helix-ASPLOS25" in workload.source
    assert "checksum DIFFERS" in workload.source
    assert str(tmp_path) not in workload.source


@pytest.mark.parametrize("rows", [999, 1001])
def test_a_known_trace_has_its_number_of_rows(tmp_path, rows):
    (tmp_path / HELIX_FILE).write_text("input_tokens,output_tokens\n" + "3,4\n" * rows)
    with pytest.raises(TraceError, match=f"{rows:,} rows where 'sharegpt' has 1,000"):
        read_known(tmp_path, "sharegpt")


def test_a_checksum_is_that_of_the_content(tmp_path):
    plain, packed = tmp_path / "a.csv", tmp_path / "a.csv.gz"
    plain.write_bytes(b"content")
    packed.write_bytes(gzip.compress(b"content"))
    renamed = packed.rename(tmp_path / "b.csv")
    assert trace_sha256(plain) == trace_sha256(renamed) == hashlib.sha256(b"content").hexdigest()


def test_a_checksum_of_nothing(tmp_path):
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        trace_sha256(tmp_path / "absent.csv")


def test_the_documentation_lists_every_trace_as_the_code_does():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for trace in KNOWN_TRACES.values():
        for fact in (trace.name, trace.file, trace.repository, trace.public_path, trace.licence, trace.sha256):
            assert fact in page, f"docs/data.md lacks {fact!r} of {trace.name}"
        assert f"{trace.rows:,}" in page
