"""What `up` makes of its flags; that it starts and ends processes is the launch's tests and the mesh's."""

import json
import shlex

import pytest

from common.config.types import MeshConfig
from common.errors import ConfigError
from common.messages.control import Role
from services.cli.roles import find_instance
from services.cli.up import UpFlags, config_for, curl_line


def test_without_flags_it_is_the_default_mesh_with_a_free_control_port():
    config = config_for(UpFlags(), {})
    assert config.gateway.control == "tcp://127.0.0.1:0"
    assert config.gateway.http == MeshConfig().gateway.http
    assert config.instances == MeshConfig().instances


def test_flags_override_file_and_environment(tmp_path):
    file = tmp_path / "mesh.yaml"
    file.write_text("model: of-file\ndtype: float16\ngateway: {http: '0.0.0.0:1', control: 'tcp://127.0.0.1:5701'}\n")
    flags = UpFlags(config=file, port=0, model="of-flag", prefill=2, decode=2)
    config = config_for(flags, {"PDMESH_MODEL": "of-env", "PDMESH_DTYPE": "bfloat16"})
    assert (config.model, config.dtype) == ("of-flag", "bfloat16")
    assert config.gateway.http == "0.0.0.0:0"
    assert config.gateway.control == "tcp://127.0.0.1:5701", "a configured endpoint stays"
    assert [instance.id for instance in config.instances] == ["p0", "p1", "d0", "d1"]


def test_no_prefill_instance_is_split_0_unless_a_split_was_asked_for():
    assert config_for(UpFlags(prefill=0), {}).split == 0
    with pytest.raises(ConfigError, match="set split: 0"):
        config_for(UpFlags(prefill=0), {"PDMESH_SPLIT": "0.5"})


def test_the_curl_line_can_be_pasted_whatever_the_model_is_called():
    words = shlex.split(curl_line("http://127.0.0.1:8000", 'it\'s a "model"'))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == 'it\'s a "model"'


def test_the_only_instance_of_a_role_needs_no_name():
    mesh = config_for(UpFlags(decode=2), {})
    assert find_instance(mesh, Role.PREFILL, None).id == "p0"
    assert find_instance(mesh, Role.DECODE, "d1").id == "d1"
    with pytest.raises(ConfigError, match=r"which decode instance is not said.*d0, d1"):
        find_instance(mesh, Role.DECODE, None)
    with pytest.raises(ConfigError, match="'p0' is not in the configuration, which has d0, d1"):
        find_instance(mesh, Role.DECODE, "p0")
