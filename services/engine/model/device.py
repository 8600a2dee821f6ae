"""What torch calls the device that mesh.yaml names."""

import torch

from common.config.types import InstanceConfig
from common.errors import ConfigError


def torch_device(device: str) -> str:
    """`device` of an instance as torch has it: ROCm builds of torch call their devices cuda too."""
    kind, colon, index = device.partition(":")
    return f"{'cuda' if kind == 'rocm' else kind}{colon}{index}"


def check_device(instance: InstanceConfig, build: str, count: int, *, is_rocm_build: bool) -> None:
    """Raise ConfigError where a process with `count` GPUs and the build of torch `build` lacks the instance's GPU.

    `cuda` is whatever torch calls so; `rocm` needs a ROCm build.
    """
    kind, _, index = instance.device.partition(":")
    if kind == "rocm" and not is_rocm_build:
        raise ConfigError(
            f"instance {instance.id!r} wants device {instance.device!r}, and torch {build} is no ROCm build: "
            "install one (README: which torch), or take another device"
        )
    if int(index or 0) >= count:
        raise ConfigError(
            f"instance {instance.id!r} wants device {instance.device!r}; torch {build} sees {count} GPUs: "
            "take another device, or a build of torch for this machine's GPU (README: which torch)"
        )


def check_this_process(instance: InstanceConfig) -> None:
    """Raise ConfigError for a device that this process does not have."""
    if instance.device != "cpu":
        is_rocm_build = torch.version.hip is not None
        check_device(instance, torch.__version__, torch.cuda.device_count(), is_rocm_build=is_rocm_build)
