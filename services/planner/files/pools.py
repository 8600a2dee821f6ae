"""From a machine of a plan file to a pool: what each strategy can do there."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import UNSET

from common.config.sizes import parse_size
from services.planner.files.measured import Measured, read_profiles
from services.planner.files.plan_keys import MachineKeys
from services.planner.files.template import slowdown_of, template_of
from services.planner.request import Misfit, Pool
from services.simulator.cluster.instance_facts import InstanceFacts, device_facts, profile_facts
from services.simulator.cluster.keys import AssumedKeys
from services.simulator.cluster.served_model import ServedModel
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.device import ESTIMATED, DeviceSpec, Figure
from services.simulator.hardware.memory import UTILISATION, InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.slowed import slowed
from services.simulator.hardware.strategy import Strategy, candidates, unsuitable
from services.simulator.links import LinkSpec

_INTRA_LATENCY_S = 10e-6
"""Of a link whose bandwidth is given: that of AIConfigurator's point-to-point messages."""


class Setting(msgspec.Struct, frozen=True):
    """What the pools of one plan file have in common."""

    model: ServedModel
    catalogue: Catalogue
    folder: Path
    """Of the file: paths of profiles are taken from it."""
    prices: str | None
    longest: int
    """Tokens of the longest request, prompt and output."""


def pool_of(keys: MachineKeys, setting: Setting) -> Pool:
    """The pool of `keys`; a strategy that does not fit is among those refused.

    Raises ConfigError for an unknown device, a dtype that it lacks, or keys that contradict its profiles; ProfileError
    for a profile of something else.
    """
    machine = _machine(keys, setting)
    facts: dict[Strategy, InstanceFacts] = {}
    refused: dict[Strategy, Misfit] = {}
    for strategy in dict.fromkeys((*candidates(keys.devices), *machine.measured)):
        found = machine.facts(strategy)
        if isinstance(found, Misfit):
            refused[strategy] = found
        else:
            facts[strategy] = found
    kv_memory = None if keys.kv_tokens is None else keys.kv_tokens * machine.model.token_bytes
    return Pool(
        name=keys.name,
        device=machine.words,
        machines=keys.count,
        devices_per_machine=keys.devices,
        device_price=_price(keys, machine.device, setting.prices),
        facts=facts,
        refused=refused,
        template=template_of(keys, machine.device, machine.measured, kv_memory),
        host_link=LinkSpec(keys.host_link.gbit_per_s * 1e9 / 8, keys.host_link.latency_s),
    )


class _Machine(msgspec.Struct, frozen=True):
    """One machine and what runs on it."""

    keys: MachineKeys
    setting: Setting
    model: ServedModel
    """In the dtype that it computes in."""
    device: DeviceSpec | None
    measured: Mapping[Strategy, Measured]

    @property
    def words(self) -> str:
        """Its device."""
        if self.device is None:
            return next(iter(self.measured.values())).profile.device
        return self.device.name if self.keys.assume == AssumedKeys() else f"{self.device.name}, with assumed figures"

    def facts(self, strategy: Strategy) -> InstanceFacts | Misfit:
        """What an instance of `strategy` does, measured where it was; or why there can be none."""
        if (reason := unsuitable(self.model.spec, strategy, self.keys.devices)) is not None:
            return Misfit(reason)
        if strategy in self.measured:
            found = profile_facts(self.measured[strategy].profile, self.model, kv_tokens=self._kv_tokens)
        elif self.device is None:
            return Misfit(f"no profile is of {strategy}, and no catalogue device says what it would do")
        else:
            try:
                found = self._of_device(self.device, strategy)
            except InfeasibleError as error:
                return Misfit(str(error), self._short_bytes(self.device, strategy))
        if found.kv_tokens < self.keys.sizes().block_size:
            short = (self.setting.longest - found.kv_tokens) * self.model.token_bytes // strategy.devices
            return Misfit(f"its KV memory holds {found.kv_tokens} tokens, less than one block", short)
        return _slower(found, slowdown_of(self.keys, self.measured))

    def _of_device(self, device: DeviceSpec, strategy: Strategy) -> InstanceFacts:
        sizes, intra = self.keys.sizes(), self.keys.intra_gbit_per_s
        found = device_facts(
            device,
            self.model,
            strategy,
            budget=sizes.budget,
            max_batch=sizes.max_batch,
            utilisation=self.keys.utilisation,
            kv_tokens=self._kv_tokens,
            link=None if intra is None else LinkSpec(intra * 1e9 / 8, _INTRA_LATENCY_S),
            among=self.setting.catalogue.devices,
        )
        if self.keys.assume == AssumedKeys():
            return found
        return msgspec.structs.replace(found, device=f"{found.device}, with assumed figures")

    @property
    def _kv_tokens(self) -> int | None:
        size = self.keys.sizes().kv_memory
        return self.keys.kv_tokens if size is None else parse_size(size) // self.model.token_bytes

    def _short_bytes(self, device: DeviceSpec, strategy: Strategy) -> int:
        """Memory that each device lacks for the KV that was asked for, or for the longest request; to a MiB.

        Found by giving it more until it fits, so that memory is reckoned in one place only.
        """
        needed = self._kv_tokens or self.setting.longest
        # As device_facts: who says how much KV there is to be takes the memory from wherever it is.
        utilisation = self.keys.utilisation or (UTILISATION if self._kv_tokens is None else 1.0)
        more = 1
        while not _holds(device, more, self.model, strategy, utilisation, needed):
            more *= 2
        low, high = more // 2, more
        while high - low > 1:
            middle = (low + high) // 2
            if _holds(device, middle, self.model, strategy, utilisation, needed):
                high = middle
            else:
                low = middle
        return high * 2**20


def _machine(keys: MachineKeys, setting: Setting) -> _Machine:
    dtype = keys.instance.dtype
    device = None
    if keys.device is not None:
        device = setting.catalogue.device(keys.device).assuming(**msgspec.structs.asdict(keys.assume))
    return _Machine(
        keys=keys,
        setting=setting,
        model=setting.model if dtype in (UNSET, None) else msgspec.structs.replace(setting.model, dtype=dtype),
        device=device,
        measured=read_profiles(setting.folder, keys.profiles),
    )


def _price(keys: MachineKeys, device: DeviceSpec | None, prices: str | None) -> float | None:
    """Per device and hour."""
    if keys.price is not None:
        return keys.price / keys.devices
    return None if device is None or prices is None else device.price(prices)


def _holds(
    device: DeviceSpec, more_mib: int, model: ServedModel, strategy: Strategy, utilisation: float, tokens: int
) -> bool:
    """Whether such a device with so much more memory has room for `tokens` of KV."""
    memory = Figure(device.memory_mib.value + more_mib, ESTIMATED)
    larger = msgspec.structs.replace(device, memory_mib=memory)
    try:
        room = kv_capacity_tokens(larger, model.spec, model.dtype, strategy=strategy, utilisation=utilisation)
    except InfeasibleError:
        return False
    return room >= tokens


def _slower(facts: InstanceFacts, slowdown: float) -> InstanceFacts:
    if slowdown == 1.0:
        return facts
    return msgspec.structs.replace(
        facts,
        timers={role: slowed(timer, slowdown) for role, timer in facts.timers.items()},
        costs=facts.costs.scaled(slowdown),
        throughput_costs=facts.throughput_costs.scaled(slowdown),
        device=f"{facts.device}, at {slowdown:g} × its step times",
    )
