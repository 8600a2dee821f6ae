"""API keys: what is kept of them, who is let in, and how one is taken back."""

import hmac
import logging
import os
import secrets
from pathlib import Path

import pytest

from common.clock import ManualClock
from common.errors import ConfigError
from services.gateway.http.api_keys import bearer_of, key_of, owner_among, read_lines, stored
from services.gateway.http.key_file import LOOK_EVERY_S, KeyFile

KEY, OTHER = key_of(b"\x01" * 32), key_of(b"\x02" * 32)


def write(file: Path, *lines: str) -> None:
    file.write_text("".join(f"{line}\n" for line in lines))


def test_a_key_is_text_for_a_header_and_no_two_are_alike() -> None:
    keys = {key_of(secrets.token_bytes(32)) for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("pdmesh-") and len(key) == 50 and key.isascii() for key in keys)
    with pytest.raises(ValueError, match="32 random bytes"):
        key_of(b"short")


def test_what_is_kept_says_nothing_of_the_key_and_reads_back() -> None:
    line = stored("ann", KEY).line()
    assert KEY not in line
    assert KEY.removeprefix("pdmesh-") not in line
    (known,) = read_lines(f"# clients\n\n  {line}  # since May\n").keys
    assert (known.name, known) == ("ann", stored("ann", KEY))


def test_only_the_whole_key_is_its_owner_s() -> None:
    keys = (stored("ann", KEY), stored("bob", OTHER))
    assert (owner_among(KEY, keys), owner_among(OTHER, keys)) == ("ann", "bob")
    digest = stored("ann", KEY).digest.hex()
    for wrong in ("", KEY[:-1], KEY + "x", KEY.upper(), digest, f"sha256:{digest}", "x" * 10_000, "\udcff"):
        assert owner_among(wrong, keys) is None
    assert owner_among(KEY, ()) is None


@pytest.mark.parametrize("name", ["first", "middle", "last", "nobody"])
def test_every_stored_key_is_compared_whichever_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the time of an answer would tell where in the file a key stands."""
    known = {owner: key_of(bytes([number]) * 32) for number, owner in enumerate(("first", "middle", "last"))}
    keys = [stored(owner, key) for owner, key in known.items()]
    compare, compared = hmac.compare_digest, list[bytes]()

    def spy(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    owner = owner_among(known.get(name, OTHER + "x"), keys)
    assert owner == (name if name in known else None)
    assert compared == [key.digest for key in keys]


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("BEARER abc", "abc"),
        ("Basic abc", None),
        ("abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_the_scheme_is_bearer_however_it_is_written(header: str | None, key: str | None) -> None:
    assert bearer_of(header) == key


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann sha256:abc",
        f"ann md5:{'0' * 64}",
        f"ann {KEY}",
        f"a/b sha256:{'0' * 64}",
        f"ann sha256:{'0' * 64} more",
        f"ann sha256:{'G' * 64}",
    ],
)
def test_a_line_that_is_no_key_is_told_and_keeps_the_gateway_from_starting(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    write(file, stored("bob", OTHER).line(), line)
    read = read_lines(file.read_text())
    assert [key.name for key in read.keys] == ["bob"]
    assert "line 2" in read.problems[0]
    with pytest.raises(ConfigError, match="line 2"):
        KeyFile(file, ManualClock())


def test_a_name_given_twice_is_told() -> None:
    read = read_lines(f"{stored('ann', KEY).line()}\n{stored('ann', OTHER).line()}\n")
    assert "'ann' is given twice" in read.problems[0]
    assert len(read.keys) == 1


def test_a_missing_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pdmesh keys api NAME --file"):
        KeyFile(tmp_path / "none", ManualClock())


def test_a_key_is_taken_back_and_given_while_the_gateway_runs(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", ManualClock()
    write(file, stored("ann", KEY).line())
    keys = KeyFile(file, clock)
    assert keys.owner_of(KEY) == "ann"
    write(file, stored("bob", OTHER).line())
    os.utime(file, ns=(1, 1))
    assert keys.owner_of(KEY) == "ann", "the file is not looked at for every request"
    clock.advance(LOOK_EVERY_S)
    assert (keys.owner_of(KEY), keys.owner_of(OTHER)) == (None, "bob")


def test_a_file_that_is_gone_lets_nobody_in_until_it_is_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, clock = tmp_path / "keys", ManualClock()
    write(file, stored("ann", KEY).line())
    keys = KeyFile(file, clock)
    file.unlink()
    for _ in range(5):
        clock.advance(LOOK_EVERY_S)
        assert keys.owner_of(KEY) is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "told once"
    write(file, stored("ann", KEY).line(), "half a li")
    clock.advance(LOOK_EVERY_S)
    assert keys.owner_of(KEY) == "ann", "one broken line shuts nobody out"
    assert KEY not in caplog.text
