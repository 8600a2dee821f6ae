"""The placement policies by the name that mesh.yaml gives them; each module is imported when first asked for."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from common.errors import ConfigError
from services.scheduling.policies.routing import PlacementPolicy

POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "fixed": "services.scheduling.policies.fixed:FixedPolicy",
        "disagg": "services.scheduling.policies.disaggregated:DisaggregatedPolicy",
        "dp": "services.scheduling.policies.weighted:WeightedPolicy",
        "cronus": "services.scheduling.policies.cronus:CronusPolicy",
        "capacity": "services.scheduling.policies.capacity:CapacityPolicy",
        "round_robin": "services.scheduling.policies.dealing:RoundRobinPolicy",
        "random": "services.scheduling.policies.dealing:RandomPolicy",
        "jsq": "services.scheduling.policies.dealing:ShortestQueuePolicy",
        "power_of_two": "services.scheduling.policies.dealing:PowerOfTwoPolicy",
        "least_kv": "services.scheduling.policies.dealing:LeastKVPolicy",
    }
)
"""Name → "module:class", a PlacementPolicy."""

WHOLE_ONLY = frozenset({"dp", "round_robin", "random", "jsq", "power_of_two", "least_kv"})
"""Those that give a prefill instance nothing to do, unless a request says its own split."""


def load_policy(name: str, split: str | int | float, *, policies: Mapping[str, str] = POLICIES) -> PlacementPolicy:
    """The policy `name` of `policies`; raises ConfigError for a name that is not there."""
    if name not in policies:
        raise ConfigError(f"policy {name!r} is not known; choose one of {', '.join(sorted(policies))}")
    module, _, attribute = policies[name].partition(":")
    policy = getattr(import_module(module), attribute)
    if not (isinstance(policy, type) and issubclass(policy, PlacementPolicy)):
        raise ConfigError(f"policy {name!r} names {policies[name]!r}, which is not a PlacementPolicy")
    return policy.configured(split)
