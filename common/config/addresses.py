"""Network addresses as they stand in mesh.yaml."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from common.errors import ConfigError

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


def parse_http(text: str) -> tuple[str, int]:
    """Host (an IPv6 one without its brackets) and port of "127.0.0.1:8000" or "[::1]:8000". Raises ConfigError."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(
            f"{text!r} is not an address: write HOST:PORT, such as '127.0.0.1:8000' (port 0 takes a free one)"
        )
    return match["host"].strip("[]"), int(match["port"])


def format_host_port(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_control(text: str) -> tuple[str, int] | None:
    """Host and port of a "tcp://HOST:PORT" endpoint; None for "ipc://PATH", which has none. Raises ConfigError."""
    if text.startswith("ipc://") and len(text) > len("ipc://"):
        return None
    match = _HOST_PORT.fullmatch(text.removeprefix("tcp://")) if text.startswith("tcp://") else None
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(
            f"{text!r} is not a control endpoint: write 'tcp://HOST:PORT' (port 0 takes a free one) or 'ipc://PATH'"
        )
    return match["host"].strip("[]"), int(match["port"])


def check_collector(text: str) -> None:
    """Raise ConfigError unless `text` is the address of an HTTP service."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment or any(letter.isspace() for letter in text):
        raise ConfigError(f"{text!r} is not a collector's address: write http://HOST:PORT or https://HOST:PORT")


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine only. A name other than localhost may be anything: False."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
