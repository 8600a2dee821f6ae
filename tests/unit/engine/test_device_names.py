"""What torch calls the devices of mesh.yaml, and devices that a process does not have."""

import pytest
import torch

from common.config.types import InstanceConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.engine.build import prepare_process
from services.engine.measuring.facts import device_facts
from services.engine.model.device import check_device, torch_device
from services.engine.twin.deterministic import deterministic_layout


def instance(device: str) -> InstanceConfig:
    return InstanceConfig(id=InstanceId("d0"), role=Role.DECODE, device=device)


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu", "cpu"), ("cuda", "cuda"), ("cuda:3", "cuda:3"), ("rocm", "cuda"), ("rocm:3", "cuda:3")],
)
def test_torch_knows_the_name(device: str, name: str) -> None:
    assert torch_device(device) == name
    torch.device(name)  # raises for a name that torch does not know


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "rocm", "rocm:1"])
def test_a_device_that_is_there(device: str) -> None:
    check_device(instance(device), "2.13.0", 2, is_rocm_build=device.startswith("rocm"))


def test_cuda_is_whatever_torch_calls_so() -> None:
    check_device(instance("cuda:1"), "2.13.0+rocm7.1", 2, is_rocm_build=True)


@pytest.mark.parametrize("device", ["cuda:2", "rocm:2"])
def test_a_device_beyond_those_that_are_there(device: str) -> None:
    with pytest.raises(ConfigError, match=f"'d0' wants device '{device}'; torch 2.13.0 sees 2 GPUs"):
        check_device(instance(device), "2.13.0", 2, is_rocm_build=device.startswith("rocm"))


def test_rocm_on_another_build_would_be_another_vendors_device() -> None:
    with pytest.raises(ConfigError, match=r"'rocm:0', and torch 2\.13\.0 is no ROCm build"):
        check_device(instance("rocm:0"), "2.13.0", 2, is_rocm_build=False)


@pytest.mark.parametrize("device", ["cuda:99", "rocm:99"])
def test_a_process_is_refused_before_it_loads_anything(device: str) -> None:
    with pytest.raises(ConfigError, match=f"wants device '{device}'"):
        prepare_process(instance(device))


def test_a_process_on_the_cpu_is_not_asked_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "device_count")
    prepare_process(instance("cpu"))


@pytest.mark.parametrize(("device", "asked"), [("rocm:1", "cuda:1"), ("cuda", "cuda")])
def test_facts_ask_torch_by_its_own_name(monkeypatch: pytest.MonkeyPatch, device: str, asked: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"the device {name}")
    assert device_facts(instance(device), deterministic_layout()).name == f"the device {asked}"
