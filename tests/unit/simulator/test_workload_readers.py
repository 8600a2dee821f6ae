import gzip
from pathlib import Path

import pytest

from common.errors import PdmeshError
from services.simulator.workload.csv_traces import AZURE, HELIX, VIDUR, read_csv
from services.simulator.workload.errors import TraceError, WorkloadError
from services.simulator.workload.lines import MAX_LINE_CHARS
from services.simulator.workload.mooncake import read_mooncake
from services.simulator.workload.readers import read_trace
from services.simulator.workload.requests import MAX_TOKENS, TracedRequest

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE_ROWS = (
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.9951690,396,109",
    "2023-11-16 18:15:50.9951690,879,55",
)
AZURE_REQUESTS = (
    TracedRequest(0.0, 374, 44),
    TracedRequest(4.314579, 396, 109),
    TracedRequest(4.314579, 879, 55),
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}',
    '{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 2366]}',
)


@pytest.fixture
def write(tmp_path):
    def file(*lines: str, name: str = "trace.csv", end: str = "\n") -> Path:
        path = tmp_path / name
        path.write_bytes(end.join([*lines, ""]).encode())
        return path

    return file


# ---------------------------------------------------------------- each format


def test_azure(write):
    workload = read_trace(write(AZURE_HEADER, *AZURE_ROWS, name="conv.csv"))
    assert workload.requests == AZURE_REQUESTS
    assert workload.name == "conv"
    assert workload.source == "Azure LLM inference trace, conv.csv"
    assert workload.arrivals == "as recorded"


@pytest.mark.parametrize("name", ["conv.csv.gz", "conv.csv"])
def test_gzipped_whatever_the_file_is_called(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress("\n".join([AZURE_HEADER, *AZURE_ROWS]).encode()))
    workload = read_trace(path)
    assert workload.requests == AZURE_REQUESTS
    assert workload.name == "conv"


def test_azure_of_another_year_names_its_zone(write):
    rows = ("2024-05-10 01:59:59.999999+02:00,1,1", "2024-05-10 00:00:00+00:00,1,1", "2024-05-10T00:00:01Z,1,1")
    arrivals = [request.arrival_s for request in read_trace(write(AZURE_HEADER, *rows)).requests]
    assert arrivals == [0.0, 1e-6, 1.000001]


def test_the_seventh_digit_counts(write):
    rows = ("2023-11-16 23:59:59.9999999,1,1", "2023-11-17 00:00:00.0000001,1,1")
    assert read_csv(write(AZURE_HEADER, *rows), AZURE).requests[1].arrival_s == 2e-7


def test_mooncake(write):
    path = write(*MOONCAKE, name="conversation.jsonl")
    assert read_trace(path).requests == (TracedRequest(0.0, 6955, 52), TracedRequest(3.053, 6472, 26))
    assert read_trace(path).name == "conversation"
    assert [request.hash_ids for request in read_mooncake(path, keep_hash_ids=True).requests] == [
        (46, 47, 2353),
        (46, 47, 2366),
    ]


def test_mooncake_may_lack_hashes_and_have_other_keys(write):
    line = '{"session": "a", "output_length": 2, "input_length": 1, "timestamp": 0.5}'
    assert read_mooncake(write(line), keep_hash_ids=True).requests == (TracedRequest(0.0, 1, 2),)


def test_vidur(write):
    path = write("num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio", "3772,54,3826,69.85", "1,5,6,0.2")
    assert read_trace(path).requests == (TracedRequest(0.0, 3772, 54), TracedRequest(0.0, 1, 5))
    assert read_trace(path).arrivals is None
    assert read_trace(path) == read_csv(path, VIDUR)


def test_vidur_with_arrivals(write):
    path = write("arrived_at,num_prefill_tokens,num_decode_tokens", "1.0,374,44", "5.314579,396,109", "1e1,2,3")
    assert [request.arrival_s for request in read_trace(path).requests] == [0.0, 4.314579, 9.0]
    assert read_trace(path).arrivals == "as recorded"


def test_helix(write):
    path = write("input_tokens,output_tokens", "29,202", "14,58")
    assert read_trace(path).requests == (TracedRequest(0.0, 29, 202), TracedRequest(0.0, 14, 58))
    assert read_trace(path).arrivals is None


def test_columns_in_any_order_with_others_beside_them(write):
    path = write('note, output_tokens ,input_tokens,"a, b"', '"x, y", 202 ,29,', "z,58,14,1")
    assert read_csv(path, HELIX).requests == (TracedRequest(0.0, 29, 202), TracedRequest(0.0, 14, 58))


def test_ends_of_windows_a_byte_order_mark_and_blank_lines(write):
    path = write("\ufeff" + AZURE_HEADER, AZURE_ROWS[0], "", *AZURE_ROWS[1:], "  ", end="\r\n")
    assert read_trace(path).requests == AZURE_REQUESTS
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_trace(path).requests == AZURE_REQUESTS


def test_a_limit_leaves_the_rest_unread(write):
    path = write(AZURE_HEADER, *AZURE_ROWS, "rubbish")
    assert read_trace(path, limit=2).requests == AZURE_REQUESTS[:2]
    assert read_trace(write(*MOONCAKE, "rubbish"), limit=2).requests[1].prompt_tokens == 6472
    with pytest.raises(WorkloadError, match="limit is 0"):
        read_trace(path, limit=0)


# ---------------------------------------------------------------- what is wrong, and where


@pytest.mark.parametrize("length", ["0", "-3", "", " ", "12.0", "1e3", "nan", "many", "1_000", "+5", "٣", "10000001"])
@pytest.mark.parametrize("column", ["ContextTokens", "GeneratedTokens"])
def test_a_length_that_is_none(write, length, column):
    lengths = {"ContextTokens": "7", "GeneratedTokens": "8", column: length}
    row = f"2023-11-16 18:16:00.0000000,{lengths['ContextTokens']},{lengths['GeneratedTokens']}"
    path = write(AZURE_HEADER, *AZURE_ROWS, row)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}, line 5: {column} is {length.strip()!r};")


def test_the_longest_length_is_one(write):
    path = write("input_tokens,output_tokens", f"{MAX_TOKENS},{MAX_TOKENS}")
    assert read_trace(path).requests[0].prompt_tokens == 10_000_000


@pytest.mark.parametrize("digits", [21, 5000])
def test_a_number_too_long_for_python_is_an_error_like_any_other(write, digits):
    with pytest.raises(TraceError, match="line 2: input_tokens is '9999"):
        read_trace(write("input_tokens,output_tokens", f"{'9' * digits},1"))


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "18:15:46",
        "1700000000",
        "2023-11-16",
        "2023-13-16 18:15:46",
        "2023-11-16 25:15:46",
        "2023-11-16 18:15:46,5",
        "2023-11-16 18:15:46.",
        "2023-11-16 18:15:46+99:00",
        "0000-01-01 00:00:00",
    ],
)
def test_a_date_that_cannot_be_read(write, stamp):
    with pytest.raises(TraceError, match=r"trace\.csv, line 3: TIMESTAMP is .* cannot be read"):
        read_trace(write(AZURE_HEADER, AZURE_ROWS[0], f'"{stamp}",1,1'))


def test_the_first_and_last_dates_there_are(write):
    rows = ("0001-01-01 00:00:00+14:00,1,1", "9999-12-31 23:59:59-14:00,1,1")
    assert read_trace(write(AZURE_HEADER, *rows)).requests[1].arrival_s > 3e11


@pytest.mark.parametrize("stamp", ["", "-1", "nan", "inf", "1e999", "1_0", "soon"])
def test_seconds_that_cannot_be_read(write, stamp):
    with pytest.raises(TraceError, match=r"line 2: arrived_at is .* not a number of seconds"):
        read_trace(write("arrived_at,num_prefill_tokens,num_decode_tokens", f"{stamp},1,1"))


def test_times_that_go_back(write):
    path = write(AZURE_HEADER, AZURE_ROWS[1], AZURE_ROWS[0])
    with pytest.raises(TraceError, match=r"trace\.csv, line 3: comes 4\.31458 s before the row above"):
        read_trace(path)
    with pytest.raises(TraceError, match=r"line 2: comes 3\.053 s before"):
        read_trace(write(*reversed(MOONCAKE)))
    with pytest.raises(TraceError, match="line 5: comes 1 s before the row above"):
        read_trace(write(AZURE_HEADER, *AZURE_ROWS, "2023-11-16 18:15:49.9951690,1,1"))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"timestamp": 0, "input_length": 0, "output_length": 5}', "input_length"),
        ('{"timestamp": 0, "input_length": -1, "output_length": 5}', "input_length"),
        ('{"timestamp": 0, "input_length": 10000001, "output_length": 5}', "input_length"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 0}', "output_length"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1.5}', "output_length"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1.0}', "output_length"),
        ('{"timestamp": 0, "input_length": 5, "output_length": true}', "output_length"),
        ('{"timestamp": 0, "input_length": "5", "output_length": 1}', "input_length"),
        ('{"timestamp": 0, "input_length": 5}', "output_length"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 5}', "timestamp"),
        ('{"timestamp": null, "input_length": 5, "output_length": 5}', "timestamp"),
        ('{"timestamp": 1e308, "input_length": 5, "output_length": 5}', "timestamp"),
        ('{"input_length": 5, "output_length": 5}', "timestamp"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": ["a"]}', "hash_ids"),
        ('{"timestamp": 0, "input_length": 5, "output_length"', "truncated"),
        ("[1, 2, 3]", "object"),
    ],
)
def test_a_line_of_mooncake_that_is_none(write, line, what):
    path = write(MOONCAKE[0], line, name="t.jsonl")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert what in str(caught.value)
    assert line[:20] in str(caught.value)


@pytest.mark.parametrize("row", ["1", "1,2,3", "1;2"])
def test_a_row_of_another_width(write, row):
    with pytest.raises(TraceError, match=r"line 3: \d cells under 2 columns"):
        read_trace(write("input_tokens,output_tokens", "1,2", row))


@pytest.mark.parametrize("row", ['"1,2', '"1"x,2'])
def test_a_row_with_a_broken_quote(write, row):
    with pytest.raises(TraceError, match="line 2: no row of a CSV file"):
        read_trace(write("input_tokens,output_tokens", row))


@pytest.mark.parametrize(
    "header",
    [
        "a,b,c",
        "timestamp,contexttokens,generatedtokens",
        "TIMESTAMP,ContextTokens",
        "input_tokens;output_tokens",
        "1,2",
    ],
)
def test_an_unknown_header_is_told_all_known_ones(write, header):
    with pytest.raises(TraceError) as caught:
        read_trace(write(header, "1,2,3"))
    assert f"line 1: {header!r} is the header of no known trace" in str(caught.value)
    for known in (AZURE_HEADER, "num_prefill_tokens,num_decode_tokens", "input_tokens,output_tokens", "input_length"):
        assert known in str(caught.value)


def test_an_explicit_reader_wants_its_own_columns(write):
    with pytest.raises(TraceError, match=r"line 1: .* needs TIMESTAMP and GeneratedTokens, once each"):
        read_csv(write("ContextTokens,input_tokens", "1,2"), AZURE)
    with pytest.raises(TraceError, match=r"line 1: .* needs output_tokens, once each"):
        read_csv(write("input_tokens,output_tokens,output_tokens", "1,2,3"), HELIX)


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0), b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "empty.csv"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"empty\.csv: the file is empty"):
        read_trace(path)


def test_a_header_without_rows(write):
    with pytest.raises(TraceError, match=r"trace\.csv: no rows"):
        read_trace(write(AZURE_HEADER))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TraceError, match=r"absent\.csv cannot be read: No such file"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match="cannot be read: 'utf-8' codec"):
        read_trace(path)


PACKED = gzip.compress(f"input_tokens,output_tokens\n{''.join(f'{n},{n * n}{chr(10)}' for n in range(1, 50))}".encode())


def test_an_archive_cut_anywhere(tmp_path):
    path = tmp_path / "t.csv.gz"
    for length in range(2, len(PACKED)):
        path.write_bytes(PACKED[:length])
        with pytest.raises(TraceError, match=r"t\.csv\.gz.* cannot be read: "):
            read_csv(path, HELIX)


def test_an_archive_with_any_byte_damaged(tmp_path):
    path = tmp_path / "t.csv.gz"
    for position in range(10, len(PACKED)):  # before lies the header, where the time may be anything
        path.write_bytes(PACKED[:position] + bytes([PACKED[position] ^ 0xFF]) + PACKED[position + 1 :])
        with pytest.raises(TraceError, match=r"t\.csv\.gz"):
            read_csv(path, HELIX)


def test_an_endless_line_is_not_read_into_memory(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\0" * (MAX_LINE_CHARS + 10))
    with pytest.raises(TraceError, match="line 1: over 1,048,576 characters"):
        read_trace(path)


def test_the_error_is_ours_and_a_value_error():
    assert issubclass(TraceError, PdmeshError)
    assert issubclass(TraceError, ValueError)
