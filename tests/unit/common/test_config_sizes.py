import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.addresses import format_host_port, parse_control, parse_http
from common.config.sizes import parse_size
from common.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1GiB", 1 << 30), ("512MB", 512_000_000), (1073741824, 1 << 30), ("1.5 kib", 1536), ("7", 7), ("7B", 7)],
)
def test_sizes(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "1 PiB", "-1", "1e3", "0", "0.1", "1GiB!", 0, -5])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match=r"GiB|at least 1"):
        parse_size(text)


@given(st.integers(1, 2**70))
def test_whole_numbers_are_exact(size_bytes):
    assert parse_size(size_bytes) == size_bytes
    assert parse_size(f"{size_bytes}KiB") == size_bytes * 1024


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "[::1]:0", "a-host.example:65535"])
def test_http_addresses_round_trip(text):
    assert format_host_port(*parse_http(text)) == text


@pytest.mark.parametrize("text", ["", "8000", "host", "host:", ":80", "::1:80", "h:65536", "http://h:80", "a b:1"])
def test_what_is_no_http_address(text):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_http(text)


def test_control_endpoints():
    assert parse_control("tcp://[::1]:5700") == ("::1", 5700)
    assert parse_control("ipc:///tmp/x") is None
    for text in ("127.0.0.1:1", "udp://a:1", "ipc://", "tcp://a"):
        with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
            parse_control(text)
