from pathlib import Path

import pytest

from common.config.load import load_mesh
from common.errors import ConfigError


def write(folder: Path, keys: str) -> Path:
    file = folder / "mesh.yaml"
    file.write_text(f"split: 0\ninstances: [{{id: d0, role: decode, {keys}}}]\n")
    return file


def test_costs_come_from_a_file_or_from_a_measurement(tmp_path: Path) -> None:
    (read,) = load_mesh(write(tmp_path, "profile: d0.json"), {}, {}).instances
    assert (read.profile, read.self_profile) == ("d0.json", False)
    (measured,) = load_mesh(write(tmp_path, "self_profile: true"), {}, {}).instances
    assert (measured.profile, measured.self_profile) == (None, True)


def test_but_not_from_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"instances\[0\]\.profile is 'd0\.json' with instances\[0\]\.self_profile"):
        load_mesh(write(tmp_path, "profile: d0.json, self_profile: true"), {}, {})
