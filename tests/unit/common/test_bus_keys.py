"""Keys as files: who gets one, when one is made anew, what is refused, and that no private key is ever shown."""

import copy
import logging
import pickle
import stat
from pathlib import Path

import pytest
import zmq

from common.bus.key_files import make_keys, withdraw_key
from common.bus.keys import key_reader, read_allowed, read_gateway, read_instance
from common.errors import ConfigError
from common.ids import InstanceId

P0, D0 = InstanceId("p0"), InstanceId("d0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", [P0, D0])
    return tmp_path / "keys"


def test_each_process_gets_a_folder_with_what_it_needs(folder: Path) -> None:
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "gateway/private.key",
        "gateway/allowed/p0.pub",
        "gateway/allowed/d0.pub",
        "p0/private.key",
        "p0/gateway.pub",
        "d0/private.key",
        "d0/gateway.pub",
    }
    gateway, d0 = read_gateway(folder), read_instance(folder, D0)
    assert d0.gateway == gateway.public
    assert read_allowed(folder)[d0.own.public] == D0
    assert len({gateway.public, d0.own.public, read_instance(folder, P0).own.public}) == 3
    assert zmq.curve_public(d0.own.secret.reveal()) == d0.own.public


def test_nobody_else_can_read_what_is_private(folder: Path) -> None:
    for path in folder.glob("*/private.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_making_keys_again_changes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert make_keys(folder, [P0, D0]) == ()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_key_made_anew_takes_the_place_of_the_old_one(folder: Path) -> None:
    old, other = read_instance(folder, D0), read_instance(folder, P0)
    assert make_keys(folder, [], [D0]) == ("d0",)
    new = read_instance(folder, D0)
    assert read_allowed(folder) == {other.own.public: P0, new.own.public: D0}
    assert new.own.public != old.own.public
    assert new.gateway == old.gateway


def test_a_new_key_of_the_gateway_is_made_known_to_all_that_are_here(folder: Path) -> None:
    before = read_allowed(folder)
    assert make_keys(folder, [], ["gateway"]) == ("gateway",)
    assert {read_instance(folder, name).gateway for name in (P0, D0)} == {read_gateway(folder).public}
    assert read_allowed(folder) == before


def test_an_instance_whose_folder_was_moved_away_keeps_its_key(folder: Path, tmp_path: Path) -> None:
    (folder / "d0").rename(tmp_path / "d0")
    assert make_keys(folder, [P0, D0]) == ()
    assert not (folder / "d0").exists()


def test_a_revoked_key_is_not_allowed_again_by_making_keys(folder: Path) -> None:
    revoked = read_instance(folder, D0).own.public
    assert withdraw_key(folder, D0)
    assert not withdraw_key(folder, D0)
    make_keys(folder, [P0, D0])
    assert set(read_allowed(folder).values()) == {P0}
    make_keys(folder, [], [D0])
    assert revoked not in read_allowed(folder)
    assert set(read_allowed(folder).values()) == {P0, D0}


def test_a_machine_with_an_instances_folder_alone_makes_no_gateway(folder: Path, tmp_path: Path) -> None:
    (folder / "d0").rename(tmp_path / "d0")
    with pytest.raises(ConfigError, match="run this where they were made"):
        make_keys(tmp_path, [D0])
    assert not (tmp_path / "gateway").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_private_key_that_others_may_use_is_refused(folder: Path, mode: int) -> None:
    for path, read in (("gateway", lambda: read_gateway(folder)), ("d0", lambda: read_instance(folder, D0))):
        (folder / path / "private.key").chmod(mode)
        with pytest.raises(ConfigError, match=rf"{path}/private\.key \(mode {mode:04o}\).*chmod 600"):
            read()


@pytest.mark.parametrize("content", [b"", b"x" * 39, b"x" * 41, b"~" * 40, b"#" * 40, b"\xff" * 40])
def test_what_is_no_key_is_refused_without_being_repeated(folder: Path, content: bytes) -> None:
    for path in (folder / "d0" / "private.key", folder / "d0" / "gateway.pub"):
        kept = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ConfigError) as refused:
            read_instance(folder, D0)
        path.write_bytes(kept)
        assert str(path) in str(refused.value)
        assert not content or content.decode(errors="replace") not in str(refused.value)


def test_a_missing_key_says_who_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"d0/private\.key.*pdmesh keys init --instance d0"):
        key_reader(str(tmp_path), D0)()
    with pytest.raises(ConfigError, match=r"gateway/private\.key.*pdmesh keys init"):
        read_gateway(tmp_path)
    assert key_reader(None, D0)() is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="another folder with --out"):
        make_keys(tmp_path / "file" / "keys", [D0])


def test_one_key_for_two_lets_neither_in_and_a_damaged_one_nobody(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = folder / "gateway" / "allowed"
    (allowed / "d1.pub").write_bytes((allowed / "d0.pub").read_bytes())
    (allowed / "d2.pub").write_bytes(b"nonsense")
    (allowed / "README").write_text("no key")
    assert set(read_allowed(folder).values()) == {P0}
    assert "d1.pub holds the key of d0 as well" in caplog.text
    assert "d2 cannot join" in caplog.text


def test_without_the_folder_nobody_is_allowed(tmp_path: Path) -> None:
    assert read_allowed(tmp_path) == {}


def test_a_private_key_is_shown_nowhere(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = read_instance(folder, D0)
    secret = keys.own.secret.reveal().decode()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").warning("%s %r %s", keys, keys.own, vars(type(keys.own.secret)))
    for shown in (repr(keys), str(keys), f"{keys.own.secret}", f"{keys.own.secret!r:>60}", caplog.text):
        assert secret not in shown
    for leak in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="leaves this process"):
            leak(keys.own.secret)
