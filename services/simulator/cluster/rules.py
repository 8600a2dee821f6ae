"""What a cluster file must satisfy beyond the types of its keys."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from msgspec import UNSET

from common.config.sizes import parse_size
from common.config.types import Split
from common.errors import ConfigError
from common.messages.control import Role
from services.scheduling.policies.registry import POLICIES, WHOLE_ONLY
from services.simulator.cluster.keys import TUNED, AssumedKeys, ClusterKeys, InstanceKeys, SystemKeys

_OF_ONE_POLICY = {"weights": "dp", "split": "fixed", "balance": "cronus"}
"""Keys of a system that only one policy reads."""


def problems(keys: ClusterKeys) -> Iterator[str]:
    """A sentence for everything that keeps the file from being used: key, value, what is allowed, what to do."""
    for index, instance in enumerate(keys.instances):
        yield from _of_instance(f"instances[{index}]", instance)
    names = [name for instance in keys.instances for name in instance_names(instance)]
    doubled = list(_of_names("instances", "id", [instance.id for instance in keys.instances]))
    yield from doubled or _of_names("instances", "id", names)
    for index, system in enumerate(keys.systems):
        yield from _of_system(f"systems[{index}]", system, keys)
    yield from _of_names("systems", "name", [system.name for system in keys.systems])


def instance_names(instance: InstanceKeys) -> list[str]:
    """The names of the instances that one entry of the file stands for."""
    if instance.count == 1:
        return [instance.id]
    return [f"{instance.id}-{number}" for number in range(instance.count)]


def policy_problem(policy: str) -> str | None:
    """Why there is no such policy; None: there is."""
    return None if policy in POLICIES else f"policy {policy!r} is not known; {known(policy, sorted(POLICIES))}"


def known(word: str, names: Sequence[str]) -> str:
    """What there is in the place of `word`, with the one that was likely meant."""
    near = difflib.get_close_matches(word, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are {', '.join(names)}"


def serving_problems(system: SystemKeys, keys: ClusterKeys) -> Iterator[str]:
    """Why the policy of `system`, a known one, cannot serve with the roles and weights that it has."""
    roles = roles_of(keys, system)
    split = keys.split if system.split is UNSET else system.split
    if (wrong := _of_roles(system.policy, roles, split)) is not None:
        yield wrong
    if system.policy == "dp" and system.weights != TUNED:
        weights = system.weights if isinstance(system.weights, dict) else _own_weights(keys)
        missing = [name for name in roles if name not in weights]
        # Weights have no unit, and what stands in for one that is missing has.
        if missing and len(missing) < len(roles):
            yield f"the weight of {', '.join(missing)} is missing, and others have one; give each a weight or none"


def roles_of(keys: ClusterKeys, system: SystemKeys) -> dict[str, Role]:
    """The roles of the entries by id, as `system` has them; those that it leaves out are not in it."""
    roles = {instance.id: system.roles.get(instance.id, instance.role) for instance in keys.instances}
    return {name: role for name, role in roles.items() if role is not None}


def _of_roles(policy: str, roles: Mapping[str, Role], split: Split | str) -> str | None:
    of_role = {role: [name for name, its in roles.items() if its is role] for role in Role}
    remedy = "set another role, here or under `roles:` of a system"
    if not of_role[Role.DECODE]:
        return f"policy {policy!r} needs a decode instance, and there is none among [{', '.join(roles)}]; {remedy}"
    if policy in WHOLE_ONLY and of_role[Role.PREFILL]:
        return (
            f"policy {policy!r} serves every request whole, at decode instances only, and "
            f"{', '.join(of_role[Role.PREFILL])} would stand idle in the role prefill; {remedy} (decode, or null to "
            "leave an instance out)"
        )
    uses_prefill = policy in ("disagg", "cronus") or (policy == "fixed" and split != 0)
    if uses_prefill and not of_role[Role.PREFILL]:
        splits = f" with split {split!r}" if policy == "fixed" else ""
        return f"policy {policy!r}{splits} needs a prefill instance beside {', '.join(roles)}; {remedy}"
    return None


def _own_weights(keys: ClusterKeys) -> dict[str, float]:
    return {entry.id: entry.weight for entry in keys.instances if entry.weight is not None}


def _of_instance(path: str, instance: InstanceKeys) -> Iterator[str]:
    if (instance.device is None) == (instance.profile is None):
        both = f"device {instance.device!r} and profile {instance.profile!r}"
        yield f"{path} ({instance.id}) has {both}: give the one or the other, a name of the catalogue or a file"
    if instance.device is None and (instance.assume != AssumedKeys() or instance.utilisation is not None):
        yield f"{path}: assume and utilisation are about a catalogue device; drop them, or give a device, not a profile"
    if instance.device is None and (instance.tp, instance.pp) != (1, 1):
        yield (
            f"{path} has tp {instance.tp} and pp {instance.pp}, and a profile is of the ranks that were measured; drop "
            "both, or give a device, not a profile"
        )
    sizes = [key for key in ("kv_memory", "kv_tokens", "utilisation") if getattr(instance, key) is not None]
    if len(sizes) > 1:
        yield f"{path}: {' and '.join(sizes)} all say how much KV it holds; keep one"
    if instance.budget < instance.max_batch:
        yield (
            f"{path}.budget is {instance.budget!r} tokens per step with max_batch {instance.max_batch!r}: each decode "
            "takes one token, so the budget must be at least max_batch; raise budget or lower max_batch"
        )
    if instance.kv_memory is not None:
        try:
            parse_size(instance.kv_memory)
        except ConfigError as error:
            yield f"{path}.kv_memory: {error}"


def _of_system(path: str, system: SystemKeys, keys: ClusterKeys) -> Iterator[str]:
    if (unknown := policy_problem(system.policy)) is not None:
        yield f"{path}.policy: {unknown}"
        return
    ids = [str(instance.id) for instance in keys.instances]
    strange = [name for name in system.roles if name not in ids]
    weights = system.weights if isinstance(system.weights, dict) else {}
    for key, names in (("roles", strange), ("weights", [name for name in weights if name not in ids])):
        for name in names:
            yield f"{path}.{key}: there is no instance {name!r}; {known(name, ids)}"
    for key, policy in _OF_ONE_POLICY.items():
        if policy != system.policy and getattr(system, key) is not UNSET:
            yield f"{path}.{key}: only policy {policy!r} reads it, and this is {system.policy!r}; drop it"
    if not strange:
        yield from (f"{path} ({system.name}): {problem}" for problem in serving_problems(system, keys))


def _of_names(where: str, key: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if not name.strip() or count > 1:
            yield f"{where}: the {key} {name!r} is empty or given {count} times; each needs its own"
