"""The ledger of one member: what the gateway has given it and what is known to be done of that."""

from dataclasses import dataclass, field

import msgspec

from common.ids import RequestId
from common.messages.control import DecodeProgress, Load, Role
from services.scheduling.members import Member
from services.scheduling.routing import InstanceView
from services.scheduling.stage_times import DecodeLoad


class Share(msgspec.Struct, frozen=True):
    """What one request is to one instance."""

    prompt_tokens: int
    """Tokens of the prompt that are computed here."""
    most_tokens: int
    """Most tokens it can come to here."""
    expected_tokens: int
    """Tokens it is expected to come to here."""
    choices: int = 1


@dataclass(slots=True)
class FleetInstance:
    """One member in one life. Every change is O(1); the view is made anew only after one."""

    member: Member
    most_requests: int
    load: Load | None = None
    shares: dict[RequestId, Share] = field(default_factory=dict)
    """Requests of which it may hold something."""
    placed: int = 0
    """Requests given to it since one of its role joined last."""
    pending: dict[RequestId, int] = field(default_factory=dict)
    """Those of them whose prompt is not computed yet, with the tokens to compute."""
    _most_tokens: int = 0
    _expected_tokens: int = 0
    _pending_tokens: int = 0
    _decodes: int = 0
    _progress: DecodeProgress = field(default_factory=lambda: DecodeProgress(0, 0))
    _view: InstanceView | None = None

    def is_draining(self) -> bool:
        """Whether it has said that it takes nothing new."""
        return self.load is not None and self.load.draining

    def report(self, load: Load) -> None:
        """What it said of itself."""
        self.load = load
        self._view = None

    def deal_anew(self) -> None:
        """Forget how many requests it was given."""
        self.placed = 0
        self._view = None

    def give(self, request: RequestId, share: Share) -> None:
        """It may hold something of `request` from now on; raises ValueError where it has no room."""
        if len(self.shares) >= self.most_requests:
            raise ValueError(f"instance {self.member.instance!r} holds {self.most_requests} requests, the most it may")
        if not self.pending:
            # What was reported as computed was of prompts that have ended since.
            self._progress = DecodeProgress(self._progress.decode_context, 0)
        self.shares[request] = share
        self.pending[request] = share.prompt_tokens
        self.placed += 1
        self._most_tokens += share.most_tokens
        self._expected_tokens += share.expected_tokens
        self._pending_tokens += share.prompt_tokens
        self._view = None

    def computed(self, request: RequestId) -> None:
        """Its part of the prompt is computed: at D the first token has come. Only the first call counts."""
        tokens = self.pending.pop(request, None)
        if tokens is None:
            return
        self._pending_tokens -= tokens
        self._decodes += self.shares[request].choices
        self._view = None

    def progressed(self, progress: DecodeProgress) -> None:
        """Where a decode instance stands."""
        self._progress = progress
        self._view = None

    def release(self, request: RequestId) -> None:
        """It holds nothing of `request` any more."""
        share = self.shares.pop(request)
        if (tokens := self.pending.pop(request, None)) is not None:
            self._pending_tokens -= tokens
        else:
            self._decodes -= share.choices
        self._most_tokens -= share.most_tokens
        self._expected_tokens -= share.expected_tokens
        self._view = None

    def view(self) -> InstanceView:
        """As a policy sees it."""
        if self._view is None:
            self._view = self._make_view()
        return self._view

    def _make_view(self) -> InstanceView:
        held = len(self.shares)
        # The report may be older than the ledger: it never makes more of the prompts done than there is of them.
        partial = min(self._progress.partial_tokens, self._pending_tokens)
        # Each prompt is a step of P, which takes few at a time.
        one_by_one = self.member.role is Role.PREFILL or len(self.pending) <= 4
        return InstanceView(
            member=self.member,
            outstanding_requests=held,
            outstanding_tokens=self._most_tokens,
            has_room=held < self.most_requests,
            load=self.load,
            placed=self.placed,
            pending_prompts=tuple(self.pending.values()) if one_by_one else (self._pending_tokens,),
            decode_load=DecodeLoad(
                decodes=self._decodes,
                decode_context=self._progress.decode_context if self._decodes else 0,
                prefill_tokens=self._pending_tokens - partial,
                prompts=len(self.pending),
            ),
            expected_tokens=self._expected_tokens,
        )
