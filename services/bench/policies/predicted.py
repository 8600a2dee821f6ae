"""The same systems in the simulator, from the profiles of the very instances."""

from collections.abc import Callable, Mapping

import msgspec

from common.messages.control import Role
from services.bench.policies.systems import POLICY_OF, Devices, System
from services.scheduling.policies.registry import load_policy
from services.scheduling.profiles.profile import Profile
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.hardware.fitted import FittedTimer
from services.simulator.links import LinkSpec
from services.simulator.runs.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.requests import Workload


class KVShape(msgspec.Struct, frozen=True):
    """What the KV of a model takes on the wire."""

    layers: int
    bytes_per_token: int


class Bounds(msgspec.Struct, frozen=True):
    """Ideal throughputs of the systems, in requests per second, for prefill seconds p and decode seconds d of a request
    on the fast device, and a slow one that takes k times as long.
    """

    prefill_s: float
    decode_s: float
    slowdown: float

    def of(self, system: System) -> float:
        """Apart, the slower stage counts; together, both devices do all work: 1/(p + d) and 1/k of that."""
        p, d, k = self.prefill_s, self.decode_s, self.slowdown
        match system:
            case System.LOW_HIGH:
                return 1.0 / max(k * p, d)
            case System.HIGH_LOW:
                return 1.0 / max(p, k * d)
            case System.CRONUS | System.DP:
                return (1.0 + 1.0 / k) / (p + d)


def bounds_of(fast: Profile, devices: Devices, workload: Workload) -> Bounds:
    """From the measured steps of the fast device: a prompt of mean length alone, and a full batch of decodes."""
    prompts = [request.prompt_tokens for request in workload.requests]
    outputs = [request.output_tokens for request in workload.requests]
    prompt, output = sum(prompts) / len(prompts), sum(outputs) / len(outputs)
    context = int(devices.max_batch * (prompt + output / 2))
    step_s = fast.costs.decode.seconds(devices.max_batch, context)
    return Bounds(fast.costs.prefill.seconds(round(prompt)), output * step_s / devices.max_batch, devices.slowdown)


def predict(
    system: System,
    devices: Devices,
    profiles: Mapping[str, Profile],
    kv: KVShape,
    link: LinkSpec,
    workload: Workload,
    *,
    dp_weight: float,
) -> Report:
    """What the simulator says of a system: step times and costs are those of the profiles."""
    roles = {
        System.CRONUS: (Role.DECODE, Role.PREFILL),
        System.LOW_HIGH: (Role.DECODE, Role.PREFILL),
        System.HIGH_LOW: (Role.PREFILL, Role.DECODE),
        System.DP: (Role.DECODE, Role.DECODE),
    }[system]
    instances = tuple(
        _instance(name, role, devices, profiles[speed], weight)
        for name, speed, role, weight in (
            ("high", "fast", roles[0], dp_weight),
            ("low", "slow", roles[1], 1.0 - dp_weight),
        )
    )
    cluster = Cluster(instances, kv.layers, kv.bytes_per_token, link)
    return simulate(cluster, workload, load_policy(POLICY_OF[system], "full"), policy_name=system)


def best_dp_weight(throughput_of: Callable[[float], float]) -> float:
    """The share of the fast device with the most simulated throughput, to two decimals."""
    coarse = max((share / 20 for share in range(10, 20)), key=throughput_of)
    near = [round(coarse + step / 100, 2) for step in range(-4, 5)]
    return max((share for share in near if 0.0 < share < 1.0), key=throughput_of)


def _instance(name: str, role: Role, devices: Devices, profile: Profile, weight: float) -> SimulatedInstance:
    assert profile.kv_capacity_tokens is not None, "a measured profile says what the instance holds"
    return SimulatedInstance(
        name=name,
        role=role,
        timer=FittedTimer(profile.costs, role),
        kv_tokens=profile.kv_capacity_tokens,
        costs=profile.costs,
        budget=devices.budget if role is Role.DECODE else None,
        max_batch=devices.max_batch,
        weight=weight,
    )
