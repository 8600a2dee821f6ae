"""What an instance says of itself to people and to profiles."""

import torch

from common.config.types import InstanceConfig
from common.hardware import cpu_name
from common.kv.layout import KVLayout
from common.messages.device import DeviceFacts
from services.engine.model.device import torch_device


def device_facts(instance: InstanceConfig, layout: KVLayout) -> DeviceFacts:
    """The facts of an instance whose model has been loaded; its KV is kept in what the model computes in."""
    is_cpu = instance.device == "cpu"
    return DeviceFacts(
        name=cpu_name() if is_cpu else torch.cuda.get_device_name(torch_device(instance.device)),
        dtype=layout.dtype.value,
        threads=instance.threads if is_cpu else None,
        slowdown=instance.emulate.slowdown,
    )
