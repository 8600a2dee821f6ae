"""Which instances hold how much of a prompt, by what they say their blocks hold. Pure."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from common.ids import InstanceId, RequestId
from common.kv.prefix import PrefixKeys, PrefixNews, root_key
from services.scheduling.membership.members import Member
from services.scheduling.request import RequestSpec

_MOST_KEYS: Final = 1 << 20
"""Of one instance: what is told beyond is not remembered."""

_MOST_PROMPTS: Final = 64
"""Whose keys are kept. The heads of the lines are asked for again and again while they wait."""


class HeldPrefixes:
    """What each member holds. A member that has told nothing holds nothing."""

    def __init__(self) -> None:
        self._held: dict[InstanceId, set[bytes]] = {}
        self._roots: dict[tuple[str, int], bytes] = {}
        self._prompts: OrderedDict[tuple[RequestId, bytes], PrefixKeys] = OrderedDict()

    def forget(self, instance: InstanceId) -> None:
        """A life is over, and its KV with it."""
        self._held.pop(instance, None)

    def note(self, instance: InstanceId, news: PrefixNews) -> None:
        """A member has told what changed."""
        held = self._held.setdefault(instance, set())
        held.difference_update(news.removed)
        if len(held) < _MOST_KEYS:
            held.update(news.added)

    def of(self, request: RequestSpec, members: Iterable[Member]) -> Mapping[InstanceId, int]:
        """The leading tokens of the prompt that each holds, in whole blocks; without those that hold none."""
        found: dict[InstanceId, int] = {}
        for member in members:
            held = self._held.get(member.instance)
            if held and (tokens := self._tokens(request, member, held)):
                found[member.instance] = tokens
        return found

    def _tokens(self, request: RequestSpec, member: Member, held: set[bytes]) -> int:
        prompt, size = request.prompt, member.layout.block_size
        keys, most = self._keys(request.request, member), len(prompt) // size
        count = 0
        while count < most and keys.at(count, lambda start, stop: prompt[start:stop]) in held:
            count += 1
        return count * size

    def _keys(self, request: RequestId, member: Member) -> PrefixKeys:
        kind = member.layout.model, member.layout.block_size
        if kind not in self._roots:
            self._roots[kind] = root_key(*kind)
        name = request, self._roots[kind]
        if name not in self._prompts:
            self._prompts[name] = PrefixKeys(self._roots[kind], member.layout.block_size)
            if len(self._prompts) > _MOST_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(name)
        return self._prompts[name]
