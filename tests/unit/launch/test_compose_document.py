"""The documents of compose files, and the mesh.yaml that containers read."""

from typing import Any

import msgspec
import pytest
import yaml

from common.config.load import check_mesh
from common.config.types import GatewayConfig, InstanceConfig, MeshConfig, TlsConfig, TransferConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.launch.compose import WRITTEN_BY, compose_stack, compose_text
from services.launch.compose_settings import ComposeSettings, ComposeStack, Images


def instance(name: str, role: Role = Role.DECODE, **keys: Any) -> InstanceConfig:
    return InstanceConfig(id=InstanceId(name), role=role, **keys)


def stack_of(
    *instances: InstanceConfig,
    transfer: TransferConfig | None = None,
    gateway: GatewayConfig | None = None,
    **settings: Any,
) -> ComposeStack:
    config = MeshConfig(
        instances=instances or MeshConfig().instances,
        transfer=transfer or TransferConfig(),
        gateway=gateway or GatewayConfig(),
    )
    return compose_stack(check_mesh(config), ComposeSettings(**settings))


def services(stack: ComposeStack, index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = stack.files[index].document["services"]
    return found


def targets(service: dict[str, Any]) -> dict[str, str]:
    """Where in the container → what."""
    return {mount["target"]: mount["source"] for mount in service["volumes"]}


P = instance("p0", Role.PREFILL)


class TestOneMachine:
    def test_a_service_for_each_instance_and_what_all_need(self) -> None:
        (file,) = stack_of().files
        assert file.host is None
        assert list(file.document["services"]) == ["keys", "model", "gateway", "p0", "d0"]
        assert file.document["networks"] == {"front": {}, "control": {"internal": True}, "data": {"internal": True}}
        assert file.document["volumes"] == {"models": {}, "sockets": {}, "keys": {}}

    def test_who_is_on_which_network(self) -> None:
        found = {name: list(service.get("networks", ())) for name, service in services(stack_of()).items()}
        assert found == {
            "keys": [],
            "model": ["front"],
            "gateway": ["front", "control"],
            "p0": ["control", "data"],
            "d0": ["control", "data"],
        }

    def test_commands_are_those_of_the_command_line(self) -> None:
        found = {name: service["command"] for name, service in services(stack_of()).items()}
        file = ["--config", "/etc/pdmesh/mesh.yaml"]
        assert found == {
            "keys": ["keys", "init", *file],
            "model": ["model", "fetch", *file],
            "gateway": ["gateway", *file],
            "p0": ["prefill", *file, "--instance", "p0"],
            "d0": ["decode", *file, "--instance", "d0"],
        }

    def test_instances_are_told_where_the_gateway_is_and_under_which_name_kv_is_served(self) -> None:
        found = services(stack_of())
        assert found["p0"]["environment"] == {
            "PDMESH_GATEWAY__CONTROL": "tcp://gateway:5700",
            "PDMESH_TRANSFER__HOST": "p0.data",
        }
        assert found["p0"]["networks"]["data"]["aliases"] == ["p0.data"]
        assert found["d0"]["environment"] == {"PDMESH_GATEWAY__CONTROL": "tcp://gateway:5700"}

    def test_an_id_that_is_no_name_of_a_host_gets_one(self) -> None:
        found = services(stack_of(instance("P_0.", Role.PREFILL), instance("d0")))
        assert found["P_0."]["environment"]["PDMESH_TRANSFER__HOST"] == "instance-0.data"
        assert found["P_0."]["networks"]["data"]["aliases"] == ["instance-0.data"]

    def test_only_the_api_is_published(self) -> None:
        found = services(stack_of())
        assert found["gateway"]["ports"] == ["127.0.0.1:8000:8000"]
        assert not any("ports" in service for name, service in found.items() if name != "gateway")

    def test_nobody_starts_before_the_model_and_the_keys_are_there(self) -> None:
        found = services(stack_of())
        ready = {name: {"condition": "service_completed_successfully"} for name in ("keys", "model")}
        assert [found[name]["depends_on"] for name in ("gateway", "p0", "d0")] == [ready] * 3
        assert "depends_on" not in found["model"]

    def test_who_ends_is_started_again_but_for_the_preparation(self) -> None:
        found = {name: service["restart"] for name, service in services(stack_of()).items()}
        once = {"keys": "no", "model": "no"}
        assert found == once | dict.fromkeys(("gateway", "p0", "d0"), "unless-stopped")

    def test_no_service_has_more_rights_than_it_needs(self) -> None:
        for service in services(stack_of()).values():
            assert service["user"] == "10001:10001"
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]

    def test_the_gateway_is_healthy_when_it_is_ready(self) -> None:
        test = services(stack_of())["gateway"]["healthcheck"]["test"]
        assert test[:3] == ["CMD", "python", "-c"]
        assert "127.0.0.1:8000/ready" in test[3]
        compile(test[3], "healthcheck", "exec")

    def test_instances_meet_in_a_folder_of_sockets(self) -> None:
        stack = stack_of()
        assert stack.mesh.transfer.shm_folder == "/run/pdmesh"
        assert [targets(services(stack)[name])["/run/pdmesh"] for name in ("p0", "d0")] == ["sockets", "sockets"]
        assert "/run/pdmesh" not in targets(services(stack)["gateway"])

    def test_without_shm_there_is_no_such_folder(self) -> None:
        stack = stack_of(transfer=TransferConfig(backends=("tcp",)))
        assert stack.mesh.transfer.shm_folder is None
        assert stack.files[0].document["volumes"] == {"models": {}, "keys": {}}
        assert "/run/pdmesh" not in targets(services(stack)["d0"])

    def test_a_cache_of_the_machine_in_place_of_the_volume(self) -> None:
        stack = stack_of(cache="/srv/models")
        assert stack.files[0].document["volumes"] == {"sockets": {}, "keys": {}}
        for name in ("model", "gateway", "p0", "d0"):
            assert targets(services(stack)[name])["/var/cache/pdmesh"] == "/srv/models"

    @pytest.mark.parametrize(("path", "is_prepared"), [("/srv/llama", False), ("/srv/llama.gguf", True)])
    def test_a_model_of_the_machine_is_seen_under_its_own_path(self, path: str, is_prepared: bool) -> None:
        stack = stack_of(local_model=path)
        assert stack.mesh.model == path
        assert ("model" in services(stack)) is is_prepared
        for name in {"model", "gateway", "p0", "d0"} & set(services(stack)):
            service = services(stack)[name]
            assert targets(service)[path] == path
            assert ("model" in service.get("depends_on", {})) is (is_prepared and name != "model")

    def test_cores_and_threads(self) -> None:
        found = services(
            stack_of(
                P,
                instance("d0", threads=2),
                instance("d1", cpu_affinity=(2, 3)),
                instance("d2", cpu_affinity=(4,), threads=2),
            )
        )
        assert [(found[name].get("cpus"), found[name].get("cpuset")) for name in ("p0", "d0", "d1", "d2")] == [
            (None, None),
            (2.0, None),
            (None, "2,3"),
            (None, "4"),
        ]
        assert [found[name]["environment"].get("OMP_NUM_THREADS") for name in ("p0", "d0", "d1", "d2")] == [
            None,
            "2",
            "2",
            "2",
        ]

    def test_profiles_travel_with_mesh_yaml(self) -> None:
        stack = stack_of(P, instance("d0", profile="profiles/slow.json"))
        assert stack.profiles == {"profiles/d0.json": "profiles/slow.json"}
        assert stack.mesh.instances[1].profile == "/etc/pdmesh/profiles/d0.json"
        assert stack.mesh.instances[0].profile is None

    @pytest.mark.parametrize("name", ["model", "keys"])
    def test_an_instance_may_not_be_called_as_a_preparation_is(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"called '{name}'"):
            stack_of(P, instance(name))

    def test_keys_are_made_once_and_nobody_else_may_change_them(self) -> None:
        found = services(stack_of())
        keys = {name: [m for m in service["volumes"] if m["source"] == "keys"] for name, service in found.items()}
        mount = {"type": "volume", "source": "keys", "target": "/run/pdmesh-keys"}
        read_only = [{**mount, "read_only": True}]
        assert keys == {"keys": [mount], "model": [], "gateway": read_only, "p0": read_only, "d0": read_only}
        assert found["keys"]["network_mode"] == "none"
        assert stack_of().mesh.gateway.control_keys == "/run/pdmesh-keys"

    def test_keys_of_the_users_are_taken_as_they_are(self) -> None:
        stack = stack_of(gateway=GatewayConfig(control_keys="/srv/keys"))
        assert "keys" not in services(stack)
        for name in ("gateway", "p0", "d0"):
            assert targets(services(stack)[name])[f"/run/pdmesh-keys/{name}"] == f"/srv/keys/{name}"
        assert stack.mesh.gateway.control_keys == "/run/pdmesh-keys"

    def test_the_gateway_alone_finds_the_file_of_its_clients_keys(self) -> None:
        stack = stack_of(gateway=GatewayConfig(api_keys="/srv/api-keys"))
        found = {name: targets(service) for name, service in services(stack).items()}
        assert found["gateway"]["/run/pdmesh-api-keys"] == "/srv/api-keys"
        assert not any("/srv/api-keys" in mounts.values() for name, mounts in found.items() if name != "gateway")
        assert stack.mesh.gateway.api_keys == "/run/pdmesh-api-keys"

    def test_who_wants_no_keys_gets_none(self) -> None:
        stack = stack_of(gateway=GatewayConfig(insecure=True))
        assert "keys" not in services(stack)
        assert stack.files[0].document["volumes"] == {"models": {}, "sockets": {}}
        assert stack.mesh.gateway.control_keys is None

    def test_a_named_machine_alone_publishes_nothing_more(self) -> None:
        (file,) = stack_of(instance("p0", Role.PREFILL, host="a"), instance("d0", host="a")).files
        assert file.host == "a"
        assert file.document["services"]["gateway"]["ports"] == ["127.0.0.1:8000:8000"]
        assert file.document["networks"]["control"] == {"internal": True}


class TestDevices:
    def test_cuda(self) -> None:
        stack = stack_of(P, instance("d0", device="cuda:3"), instance("d1", device="cuda"))
        wanted = [services(stack)[name]["deploy"]["resources"]["reservations"]["devices"] for name in ("d0", "d1")]
        assert wanted == [
            [{"driver": "nvidia", "device_ids": [index], "capabilities": ["gpu"]}] for index in ("3", "0")
        ]
        assert [each.device for each in stack.mesh.instances] == ["cpu", "cuda:0", "cuda:0"]
        assert "deploy" not in services(stack)["p0"]

    def test_rocm(self) -> None:
        stack = stack_of(P, instance("d0", device="rocm:2"))
        found = services(stack)["d0"]
        assert found["devices"] == ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
        assert found["group_add"] == ["${VIDEO_GROUP:-video}", "${RENDER_GROUP:-render}"]
        assert found["security_opt"] == ["no-new-privileges:true", "seccomp=unconfined"]
        assert found["environment"]["ROCR_VISIBLE_DEVICES"] == "2"
        assert stack.mesh.instances[1].device == "rocm:0"
        assert not {"devices", "group_add"} & set(services(stack)["p0"])
        assert services(stack)["p0"]["security_opt"] == ["no-new-privileges:true"]

    def test_images(self) -> None:
        devices = (P, instance("d0", device="cuda:0"), instance("d1", device="rocm:0"))
        found = {name: service["image"] for name, service in services(stack_of(*devices)).items()}
        assert found == {
            "keys": "pdmesh:cpu",
            "model": "pdmesh:cpu",
            "gateway": "pdmesh:cpu",
            "p0": "pdmesh:cpu",
            "d0": "pdmesh:cuda",
            "d1": "pdmesh:rocm",
        }
        own = services(stack_of(*devices, images=Images("x", "y", "z")))
        assert [own[name]["image"] for name in ("gateway", "d0", "d1")] == ["x", "y", "z"]


class TestSeveralMachines:
    TRUSTED = TransferConfig(trusted_network=True)
    KEYS = GatewayConfig(control_keys="/srv/keys")
    INSTANCES = (
        instance("p0", Role.PREFILL, host="big", device="cuda:1"),
        instance("d0", host="small"),
        instance("d1", host="small"),
    )

    def stack(self, **settings: Any) -> ComposeStack:
        return stack_of(*self.INSTANCES, transfer=self.TRUSTED, gateway=self.KEYS, **settings)

    def test_a_file_for_each_and_the_gateways_first(self) -> None:
        files = self.stack().files
        assert [(file.host, list(file.document["services"])) for file in files] == [
            ("big", ["model", "gateway", "p0"]),
            ("small", ["model", "d0", "d1"]),
        ]
        assert [list(file.document["networks"]) for file in files] == [["front"], ["front"]]

    def test_the_gateways_machine_publishes_the_api_and_the_control_port(self) -> None:
        found = services(self.stack())
        assert found["gateway"]["ports"] == ["127.0.0.1:8000:8000", "5700:5700"]
        assert found["gateway"]["networks"] == ["front"]

    def test_instances_are_on_their_machines_network_and_reach_the_gateway_by_name(self) -> None:
        for index, name in ((0, "p0"), (1, "d0")):
            found = services(self.stack(), index)[name]
            assert found["network_mode"] == "host"
            assert not {"networks", "ports"} & set(found)
            assert found["environment"]["PDMESH_GATEWAY__CONTROL"] == "tcp://big:5700"
        assert services(self.stack())["p0"]["environment"]["PDMESH_TRANSFER__HOST"] == "big"

    def test_the_gateway_may_be_elsewhere(self) -> None:
        files = self.stack(gateway_host="10.0.0.9").files
        assert [(file.host, list(file.document["services"])) for file in files] == [
            ("10.0.0.9", ["model", "gateway"]),
            ("big", ["model", "p0"]),
            ("small", ["model", "d0", "d1"]),
        ]
        assert files[0].document["volumes"] == {"models": {}}
        assert services(self.stack(gateway_host="10.0.0.9"), 2)["d1"]["environment"] == {
            "PDMESH_GATEWAY__CONTROL": "tcp://10.0.0.9:5700"
        }

    def test_kv_without_protection_must_be_asked_for(self) -> None:
        with pytest.raises(ConfigError, match=r"transfer\.tls certificates, or set transfer\.trusted_network: true"):
            stack_of(*self.INSTANCES, gateway=self.KEYS)

    def test_certificates_are_seen_where_mesh_yaml_then_says(self) -> None:
        tls = TlsConfig("/etc/mesh/own.pem", "/etc/mesh/own.key", "/etc/mesh/ca.pem")
        stack = stack_of(*self.INSTANCES, transfer=TransferConfig(tls=tls), gateway=self.KEYS)
        inside = stack.mesh.transfer.tls
        assert inside is not None
        assert stack.mesh.transfer.trusted_network is False
        for index, name in ((0, "p0"), (1, "d0")):
            seen = targets(services(stack, index)[name])
            assert [seen[path] for path in (inside.certificate, inside.key, inside.authority)] == [
                tls.certificate,
                tls.key,
                tls.authority,
            ]
        assert inside.key not in targets(services(stack)["gateway"])

    def test_the_file_says_what_must_be_open_and_what_protects_it(self) -> None:
        first, second = (compose_text(file) for file in self.stack().files)
        assert "TCP 5700, where instances join" in first
        assert "TCP ip_local_port_range (32768-60999), where KV is served" in first
        assert "Nothing has to be open here." in second, "it has decode instances alone, and these dial"
        for text in (first, second):
            assert "NOTHING PROTECTS" not in text
            assert "Instances join encrypted" in text
            assert "KV goes between the machines in the clear" in text
        folders = {
            text: {name for name in ("gateway", "p0", "d0", "d1") if f"/srv/keys/{name}\n" in text}
            for text in (first, second)
        }
        assert folders == {first: {"gateway", "p0"}, second: {"d0", "d1"}}

    def test_each_container_sees_its_own_keys_alone(self) -> None:
        stack = self.stack()
        for index, name in ((0, "gateway"), (0, "p0"), (1, "d0"), (1, "d1")):
            keys = {key: value for key, value in targets(services(stack, index)[name]).items() if "keys" in key}
            assert keys == {f"/run/pdmesh-keys/{name}": f"/srv/keys/{name}"}

    def test_no_keys_must_be_asked_for(self) -> None:
        with pytest.raises(ConfigError, match=r"pdmesh keys init.*gateway\.insecure: true"):
            stack_of(*self.INSTANCES, transfer=self.TRUSTED)
        stack = stack_of(*self.INSTANCES, transfer=self.TRUSTED, gateway=GatewayConfig(insecure=True))
        assert "NOTHING PROTECTS PORT 5700 OF 'big', as gateway.insecure wants it" in compose_text(stack.files[1])


def test_the_mesh_that_containers_read_can_be_loaded() -> None:
    config = MeshConfig(
        gateway=GatewayConfig(http="127.0.0.1:0", control="ipc:///tmp/x", queue=7),
        instances=(P, instance("d0", device="rocm:1", profile="d0.json", order="HND")),
    )
    mesh = compose_stack(config, ComposeSettings()).mesh
    assert msgspec.convert(msgspec.to_builtins(mesh), MeshConfig) == mesh
    check_mesh(mesh)
    assert (mesh.gateway.http, mesh.gateway.control, mesh.gateway.queue) == ("0.0.0.0:8000", "tcp://0.0.0.0:5700", 7)
    assert mesh.transfer.trusted_network is True


def test_the_text_is_the_document_under_its_notes() -> None:
    (file,) = stack_of(P, instance("d0", device="rocm:0"), instance("d1", device="cuda:0")).files
    text = compose_text(file)
    assert text.startswith(WRITTEN_BY)
    assert yaml.safe_load(text) == file.document
    assert "RENDER_GROUP=$(getent group render" in text
    assert "NVIDIA container toolkit" in text


def test_a_dollar_in_a_path_is_not_the_beginning_of_a_variable() -> None:
    assert targets(services(stack_of(cache="/srv/$models"))["gateway"])["/var/cache/pdmesh"] == "/srv/$$models"
