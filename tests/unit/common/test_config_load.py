import msgspec
import pytest
import yaml

from common.config.load import Source, check_mesh, load_mesh, load_mesh_with_sources
from common.config.types import GatewayConfig, MeshConfig
from common.errors import ConfigError
from common.messages.control import Role


@pytest.fixture
def mesh_file(tmp_path):
    def write(text):
        path = tmp_path / "mesh.yaml"
        path.write_text(text)
        return path

    return write


def refusal(path=None, environ=None, overrides=None):
    with pytest.raises(ConfigError) as error:
        load_mesh(path, environ or {}, overrides or {})
    return str(error.value)


def test_without_anything_every_key_has_its_default():
    mesh = load_mesh(None, {}, {})
    assert mesh == MeshConfig()
    assert [(i.id, i.role) for i in mesh.instances] == [("p0", Role.PREFILL), ("d0", Role.DECODE)]


def test_what_nobody_gave_is_a_default(mesh_file):
    for path in (None, mesh_file(""), mesh_file("gateway: {}")):
        assert set(load_mesh_with_sources(path, {}, {}).sources.values()) == {Source.DEFAULT}


def test_an_empty_file_is_all_defaults(mesh_file):
    assert load_mesh(mesh_file("# nothing yet\n"), {}, {}) == MeshConfig()


def test_later_sources_override_earlier_ones_and_are_known(mesh_file):
    path = mesh_file("model: from-file\ngateway: {http: '127.0.0.1:1', queue: 5}\nlog_level: debug\n")
    environ = {"PDMESH_GATEWAY__HTTP": "127.0.0.1:2", "PDMESH_DTYPE": "bfloat16", "HOME": "/h"}
    loaded = load_mesh_with_sources(path, environ, {"dtype": "float16"})
    mesh = loaded.config
    assert (mesh.model, mesh.gateway.http, mesh.gateway.queue) == ("from-file", "127.0.0.1:2", 5)
    assert mesh.dtype == "float16"
    assert loaded.source("model") is Source.FILE
    assert loaded.source("gateway.http") is Source.ENV
    assert loaded.source("gateway.queue") is Source.FILE
    assert loaded.source("dtype") is Source.FLAG
    assert loaded.source("gateway.control") is Source.DEFAULT
    assert loaded.source("instances[0].id") is Source.DEFAULT
    assert loaded.source("gateway") is Source.ENV


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gatway: {}", ["'gatway'", "did you mean 'gateway'?"]),
        ("gateway: {htp: x}", ["'gateway.htp'", "did you mean 'http'?"]),
        ("instances: [{id: p, role: prefill}, {id: d, role: decode, blok_size: 4}]", ["'instances[1].blok_size'"]),
        ("instances: [{id: d, role: decode, emulate: {slow: 2}}]", ["'instances[0].emulate.slow'", "slowdown"]),
        ("zzz: 1", ["'zzz'", "model", "instances"]),
        ("zzz: 1\nyyy: 2", ["'zzz'", "'yyy'"]),
        ("5: 1", ["'5'"]),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest(mesh_file, text, says):
    message = refusal(mesh_file(text))
    assert "mesh.yaml" in message
    assert [word for word in says if word not in message] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gateway: {deadline_s: 0}", ["gateway.deadline_s is 0", "> 0"]),
        ("gateway: {queue: many}", ["gateway.queue is 'many'", "an integer ≥ 1"]),
        ("dtype: float8", ["dtype is 'float8'", "'float32'", "'bfloat16'", "'float16'"]),
        ("model: 7", ["model is 7", "quote"]),
        ("split: true", ["split is True", "'full'"]),
        ("split: 1.5", ["split is 1.5", "≤ 1"]),
        ("split: -1", ["split is -1", "≥ 0"]),
        ("split: all", ["split is 'all'", "'full'"]),
        ("instances: [{id: d}]", ["instances[0] is {'id': 'd'}", "role"]),
        ("instances: [{id: d, role: dekode}]", ["instances[0].role is 'dekode'", "'prefill' or 'decode'"]),
        ("instances: 3", ["instances is 3", "a list"]),
        ("gateway: 3", ["gateway is 3", "a mapping"]),
        ("- 1", ["not a mapping"]),
        ("a: b: c", ["is not YAML"]),
        ("model: a\nmodel: b", ["'model' is given twice", "line 2"]),
        ("model: \x07", ["is not YAML"]),
        ("model: &m tiny\ndtype: *m", ["is not YAML", "aliases"]),
        ("model: &m [*m]", ["is not YAML", "aliases"]),
        ("model: 2026-13-45", ["is not YAML"]),
        ("split: " + "9" * 5000, ["is not YAML"]),
        ("model: " + "[" * 5000, ["is not YAML"]),
        ("gateway: {deadline_s: .inf}", ["gateway.deadline_s is inf"]),
        ("gateway: {deadline_s: .nan}", ["gateway.deadline_s is nan"]),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(mesh_file, text, says):
    message = refusal(mesh_file(text))
    assert "mesh.yaml" in message
    assert [word for word in says if word not in message] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gateway: {http: '8000'}", ["gateway.http", "'8000'", "HOST:PORT"]),
        ("gateway: {http: 'a:99999'}", ["gateway.http", "'a:99999'"]),
        ("gateway: {control: '127.0.0.1:5700'}", ["gateway.control", "tcp://HOST:PORT"]),
        ("gateway: {heartbeat_s: 2, lease_s: 3}", ["gateway.lease_s is 3.0", "heartbeat_s 2.0"]),
        ("gateway: {http: '127.0.0.1:80', control: 'tcp://127.0.0.1:80'}", ["gateway.control", "two ports"]),
        ("gateway: {control: 'tcp://0.0.0.0:5700'}", ["gateway.control is 'tcp://0.0.0.0:5700'", "pdmesh keys init"]),
        ("gateway: {control: 'tcp://*:5700'}", ["gateway.control is"]),
        ("gateway: {control: 'tcp://box:5700'}", ["gateway.control_keys: keys", "gateway.insecure: true"]),
        ("transfer: {host: '127.0.0.1:80'}", ["transfer.host"]),
        ("transfer: {host: 10.0.0.7}", ["transfer.host is '10.0.0.7'", "transfer.tls", "trusted_network: true"]),
        ("transfer: {host: gpu-box}", ["transfer.host is 'gpu-box'", "trusted_network: true"]),
        ("transfer: {host: 0.0.0.0, trusted_network: true}", ["host is '0.0.0.0'", "cannot connect", "10.0.0.7"]),
        ("transfer: {host: '::', trusted_network: true}", ["transfer.host is '::'", "by which other machines reach"]),
        ("transfer: {host: '[::]', trusted_network: true}", ["transfer.host is '[::]'", "other machines"]),
        ("transfer: {host: '::ffff:0.0.0.0', trusted_network: true}", ["transfer.host is", "other machines"]),
        ("transfer: {host: '*', trusted_network: true}", ["transfer.host is '*'", "other machines"]),
        ("tracing: {otlp: 'collector:4318'}", ["tracing.otlp", "'collector:4318'", "http://HOST:PORT"]),
        ("tracing: {otlp: 'http://:4318'}", ["tracing.otlp"]),
        ("tracing: {otlp: 'http://c:99999'}", ["tracing.otlp"]),
        ("gateway: {traces: 0}\ntracing: {otlp: 'http://c:4318'}", ["gateway.traces is 0", "keep some"]),
        ("transfer: {backends: []}", ["transfer.backends is []"]),
        ("transfer: {backends: [tcp, tcp]}", ["transfer.backends", "once"]),
        ("instances: [{id: p, role: prefill}]", ["no decode instance"]),
        ("instances: [{id: d, role: decode}]", ["split is 'full'", "no prefill instance", "set split: 0"]),
        ("instances: [{id: x, role: prefill}, {id: x, role: decode}]", ["'x' is given 2 times"]),
        ("split: 0\ninstances: [{id: gateway, role: decode}]", ["instances[0].id is 'gateway'"]),
        ("split: 0\ninstances: [{id: 'a b', role: decode}]", ["instances[0].id is 'a b'"]),
        ("split: 0\ninstances: [{id: .., role: decode}]", ["instances[0].id is '..'"]),
        ("split: 0\ninstances: [{id: d, role: decode, kv_memory: 1Gib2}]", ["instances[0].kv_memory", "'1GiB'"]),
        ("split: 0\ninstances: [{id: d, role: decode, device: tpu}]", ["instances[0].device is 'tpu'", "'cuda:N'"]),
        ("split: 0\ninstances: [{id: d, role: decode, cpu_affinity: [1, 1]}]", ["cpu_affinity is [1, 1]"]),
        ("split: 0\ninstances: [{id: d, role: decode, cpu_affinity: []}]", ["cpu_affinity is []"]),
        ("split: 0\ninstances: [{id: d, role: decode, budget: 8}]", ["budget is 8", "max_batch 16"]),
    ],
)
def test_a_mesh_that_cannot_work_is_refused_with_the_way_out(mesh_file, text, says):
    message = refusal(mesh_file(text))
    assert [word for word in says if word not in message] == []


@pytest.mark.parametrize(
    "gateway",
    [
        "control: 'tcp://127.0.0.1:5700'",
        "control: 'tcp://localhost:5700'",
        "control: 'tcp://[::1]:5700'",
        "control: 'ipc:///tmp/x'",
        "control: 'tcp://0.0.0.0:5700', control_keys: keys",
        "control: 'tcp://0.0.0.0:5700', insecure: true",
    ],
)
def test_where_nobody_else_can_come_keys_are_not_needed(mesh_file, gateway):
    load_mesh(mesh_file(f"gateway: {{{gateway}}}"), {}, {})


def test_every_problem_is_told_at_once(mesh_file):
    message = refusal(mesh_file("gateway: {http: x, control: y}\ninstances: []"))
    assert len(message.splitlines()) >= 3


def test_a_prefill_instance_needs_no_room_for_a_decode_batch(mesh_file):
    text = "instances: [{id: p, role: prefill, budget: 1}, {id: d, role: decode}]"
    assert load_mesh(mesh_file(text), {}, {}).instances[0].budget == 1


@pytest.mark.parametrize(("text", "split"), [("1", 1), ("1.0", 1.0), ("0", 0), ("0.25", 0.25), ("full", "full")])
def test_a_split_keeps_its_type_from_file_and_environment(mesh_file, text, split):
    for mesh in (load_mesh(mesh_file(f"split: {text}"), {}, {}), load_mesh(None, {"PDMESH_SPLIT": text}, {})):
        assert mesh.split == split
        assert type(mesh.split) is type(split)


def test_text_keys_take_variables_as_they_stand():
    assert load_mesh(None, {"PDMESH_MODEL": "1e3"}, {}).model == "1e3"
    assert load_mesh(None, {"PDMESH_MODEL": "no"}, {}).model == "no"


def test_a_variable_may_hold_a_list_and_an_empty_one_counts_as_unset():
    mesh = load_mesh(None, {"PDMESH_INSTANCES": "[{id: a, role: decode}]", "PDMESH_SPLIT": "0", "PDMESH_MODEL": ""}, {})
    assert [instance.id for instance in mesh.instances] == ["a"]
    assert mesh.model == MeshConfig().model


@pytest.mark.parametrize("name", ["PDMESH_CACHE", "PDMESH_DATA", "PDMESH_TORCH", "PATH", "XPDMESH_MODEL"])
def test_other_variables_are_left_alone(name):
    assert load_mesh(None, {name: "x"}, {}) == MeshConfig()


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"PDMESH_MODLE": "x"}, ["'PDMESH_MODLE'", "'PDMESH_MODEL'"]),
        ({"PDMESH_GATEWAY__HTPP": "x"}, ["'PDMESH_GATEWAY__HTPP'", "'PDMESH_GATEWAY__HTTP'"]),
        ({"PDMESH_GATEWAY__QUEUE": "many"}, ["PDMESH_GATEWAY__QUEUE: gateway.queue is 'many'"]),
        ({"PDMESH_SPLIT": "[1"}, ["PDMESH_SPLIT is '[1'", "not YAML"]),
    ],
)
def test_a_bad_variable_is_named(environ, says):
    message = refusal(environ=environ)
    assert [word for word in says if word not in message] == []


def test_a_bad_flag_is_named():
    assert "a flag: dtype is 'int4'" in refusal(overrides={"dtype": "int4"})
    assert "'gateway.htp'" in refusal(overrides={"gateway.htp": "x"})


def test_a_missing_file_says_what_to_do(tmp_path):
    assert "--config" in refusal(tmp_path / "none.yaml")


def test_a_config_survives_the_way_through_a_file(mesh_file):
    mesh = MeshConfig(split=1.0, gateway=GatewayConfig(queue=3))
    path = mesh_file(yaml.safe_dump(msgspec.to_builtins(mesh)))
    again = load_mesh(path, {}, {})
    assert again == mesh
    assert isinstance(again.split, float)


def test_a_config_made_by_code_is_held_to_the_same_rules():
    assert check_mesh(MeshConfig()) == MeshConfig()
    with pytest.raises(ConfigError, match="no decode instance"):
        check_mesh(MeshConfig(instances=()))
