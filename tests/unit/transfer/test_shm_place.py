"""Places and endpoints."""

from pathlib import Path

import pytest

from transfer.backends.shm.place import Place


def test_one_process_is_always_in_one_place() -> None:
    assert Place.here() == Place.here()
    assert Place.here().has(Place.here().new_endpoint())
    assert not Place("another").has(Place.here().new_endpoint())


def test_endpoints_are_never_the_same() -> None:
    assert len({Place("place").new_endpoint() for _ in range(100)}) == 100


def test_a_folder_is_known_by_what_it_is_and_not_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    here = Place.here(tmp_path)
    assert here.name == Place.here(tmp_path / "alias").name
    assert here.name not in (Place.here().name, Place.here(tmp_path / "other").name)


def test_addresses(tmp_path: Path) -> None:
    assert Place("place").address("shm://place/name") == "\0pdmesh/name"
    assert Place("place", tmp_path).address("shm://place/name") == f"{tmp_path}/name.pdmesh"
    with pytest.raises(ValueError, match="another place"):
        Place("place").address("shm://elsewhere/name")


@pytest.mark.parametrize(
    "endpoint",
    ["", "shm", "shm://", "shm://place", "shm://place/", "shm:///name", "shm://place/../../etc", "tcp://a/b"],
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError, match="not an shm endpoint"):
        Place("place", Path("/tmp")).address(endpoint)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Place.here(tmp_path / "missing")
