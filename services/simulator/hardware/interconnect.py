"""What the devices of one machine send to each other while they compute one model together."""

from services.simulator.hardware.device import DeviceSpec
from services.simulator.links import LinkSpec

LINK_EFFICIENCY = 0.7
"""Share of a published link rate that rings reach.

Four H100 of an NVLink switch take 0.318 ms for 64 MiB (Vidur's profile): 0.70 of 450 GB/s.  Two A100 reach 208 of 300
(nccl-tests issue 178).  Over PCIe 4, A100s reach 20 of 32 (the same issue) and 24 of 32 (Vidur, four in pairs).
"""
START_S = 8e-6
"""Of any exchange, before its first message: launching and meeting. Estimated with the two below."""
MESSAGE_S = 0.5e-6
"""Of each message over a device link.

Rings of eight then start after 15 us: vLLM's own kernel takes 10 us on eight H100 (SGLang pull request 2904), NCCL 20
(Vidur's profile).
"""
HOST_MESSAGE_S = 2.5e-6
"""Of each message through the host: rings of eight RTX 4090 take 42 us for eight bytes (nccl issue 1530)."""


def machine_link(device: DeviceSpec, devices: int) -> LinkSpec:
    """The link from each of `devices` such devices of a machine to the next: payload in one direction, and the seconds
    of a message.

    The interconnect where there is one that joins so many, else the host link, from device to device through the host.
    Hosts whose PCIe lanes are shared by several devices are slower: give the link that you have in the place of this.
    """
    joined = device.interconnect_devices
    if device.interconnect_gb_s.value > 0 and (joined is None or devices <= joined):
        return LinkSpec(LINK_EFFICIENCY * device.interconnect_gb_s.value * 1e9, MESSAGE_S)
    return LinkSpec(LINK_EFFICIENCY * device.host_link_gb_s.value * 1e9, HOST_MESSAGE_S)


def all_reduce_start_s(tp: int, link: LinkSpec) -> float:
    """Seconds of an all-reduce over `tp` devices without its bytes: a ring passes 2·(tp - 1) messages in a row."""
    return START_S + 2 * (tp - 1) * link.latency_s if tp > 1 else 0.0


def all_reduce_s_per_byte(tp: int, link: LinkSpec) -> float:
    """Seconds per byte to be reduced: each device of a ring sends 2·(tp - 1)/tp times all of them.

    Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations (2009).
    """
    return 2 * (tp - 1) / tp / link.bytes_per_s
