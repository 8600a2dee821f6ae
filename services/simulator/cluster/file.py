"""A cluster file: read, checked, and turned into systems that can be simulated."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import UNSET

from common.config.sources import read_file
from common.config.typed import typed
from common.errors import ConfigError, PdmeshError
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.cluster.instance_facts import InstanceFacts, instance_facts
from services.simulator.cluster.keys import TUNED, ClusterKeys, SystemKeys
from services.simulator.cluster.rules import (
    instance_names,
    known,
    policy_problem,
    problems,
    roles_of,
    serving_problems,
)
from services.simulator.cluster.served_model import ServedModel, served_model
from services.simulator.hardware.catalogue import Catalogue, load_catalogue, with_own
from services.simulator.hardware.memory import InfeasibleError
from services.simulator.links import LinkSpec
from services.simulator.runs.system import System


class ClusterFile(msgspec.Struct, frozen=True):
    """A checked cluster file, with the facts of its model and of each entry under `instances`, by id."""

    keys: ClusterKeys
    model: ServedModel
    facts: dict[str, InstanceFacts]

    def systems(self, names: Sequence[str] = ()) -> tuple[System, ...]:
        """What is to be compared, in the order of `names`.

        Where the file has systems a name stands for the one of that name, else for all of that policy; no names: all.
        Where it has none the names are policies, and at least one is needed.  Raises ConfigError.
        """
        if not self.keys.systems:
            return tuple(map(self._of_policy, _unique(names)))
        if not names:
            return tuple(map(self._system, self.keys.systems))
        chosen = [system for name in names for system in self._named(name)]
        return tuple(map(self._system, {system.name: system for system in chosen}.values()))

    def _named(self, name: str) -> list[SystemKeys]:
        systems = self.keys.systems
        if same := [system for system in systems if system.name == name]:
            return same
        if of_policy := [system for system in systems if system.policy == name]:
            return of_policy
        hint = known(name, [system.name for system in systems])
        raise ConfigError(f"no system of the cluster file has the name or the policy {name!r}; {hint}")

    def _of_policy(self, policy: str) -> System:
        system = SystemKeys(name=policy, policy=policy)
        problem = policy_problem(policy) or next(serving_problems(system, self.keys), None)
        if problem is not None:
            raise ConfigError(problem)
        return self._system(system)

    def _system(self, system: SystemKeys) -> System:
        keys = self.keys
        cluster = Cluster(
            instances=self._instances(system),
            layers=self.model.spec.layers,
            kv_bytes_per_token=self.model.token_bytes,
            link=LinkSpec(keys.link.gbit_per_s * 1e9 / 8, keys.link.latency_s),
            is_link_known=keys.link.known,
        )
        split = keys.split if system.split is UNSET else system.split
        return System(
            name=system.name,
            policy=system.policy,
            cluster=cluster,
            entries={name: entry.id for entry in keys.instances for name in instance_names(entry)},
            split="full" if split == TUNED else split,
            balance=keys.balance if system.balance is UNSET else system.balance,
            prefill_slots=keys.prefill_slots if system.prefill_slots is UNSET else system.prefill_slots,
            decode_batches=keys.decode_batches if system.decode_batches is UNSET else system.decode_batches,
            tunes_split=system.policy == "fixed" and split == TUNED,
            tunes_weights=system.policy == "dp" and system.weights == TUNED,
        )

    def _instances(self, system: SystemKeys) -> tuple[SimulatedInstance, ...]:
        roles = roles_of(self.keys, system)
        weights = system.weights if isinstance(system.weights, dict) else {}
        return tuple(
            self.facts[entry.id].instance(name, entry, roles[entry.id], weights.get(entry.id, entry.weight))
            for entry in self.keys.instances
            if entry.id in roles
            for name in instance_names(entry)
        )


def load_cluster_file(path: Path, catalogue: Catalogue | None = None) -> ClusterFile:
    """Read a cluster file; `catalogue` None: the package's own devices.

    Paths in the file are taken from its folder.  Raises ConfigError with every problem found in the keys, one a line,
    and for what they name; InfeasibleError where the model does not fit a device.
    """
    keys = typed(read_file(path), ClusterKeys, str(path))
    if found := list(problems(keys)):
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in found))
    model = served_model(keys, path)
    catalogue = catalogue or load_catalogue()
    if keys.devices is not None:
        with _at(f"{path}: devices"):
            catalogue = with_own(catalogue, path.parent / keys.devices)
    facts: dict[str, InstanceFacts] = {}
    for index, entry in enumerate(keys.instances):
        with _at(f"{path}: instances[{index}] ({entry.id})"):
            facts[entry.id] = instance_facts(entry, model, catalogue, path.parent)
    return ClusterFile(keys, model, facts)


@contextmanager
def _at(place: str) -> Iterator[None]:
    try:
        yield
    except InfeasibleError as error:
        raise InfeasibleError(f"{place}: {error}") from error
    except PdmeshError as error:
        raise ConfigError(f"{place}: {error}") from error


def _unique(names: Sequence[str]) -> list[str]:
    if not names:
        raise ConfigError("the cluster file has no systems to compare: name policies with --policy, such as dp,cronus")
    return list(dict.fromkeys(names))
