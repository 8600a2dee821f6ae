"""One member: what the gateway has given it and what is known to be done of that."""

from dataclasses import dataclass, field

from common.ids import RequestId
from common.messages.control import DecodeProgress, Load, Role
from services.scheduling.ledgers.work_ledger import Share, WorkLedger
from services.scheduling.membership.members import Member
from services.scheduling.policies.routing import InstanceView
from services.scheduling.profiles.stage_times import DecodeLoad


@dataclass(slots=True)
class FleetInstance:
    """One member in one life. Every change is O(1); the view is made anew only after one."""

    member: Member
    most_requests: int
    load: Load | None = None
    ledger: WorkLedger = field(default_factory=WorkLedger)
    """Of the requests of which it may hold something."""
    placed: int = 0
    """Requests given to it since one of its role joined last."""
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
        if len(self.ledger) >= self.most_requests:
            raise ValueError(f"instance {self.member.instance!r} holds {self.most_requests} requests, the most it may")
        if not self.ledger.pending:
            # What was reported as computed was of prompts that have ended since.
            self._progress = DecodeProgress(self._progress.decode_context, 0)
        self.ledger.give(request, share)
        self.placed += 1
        self._view = None

    def computed(self, request: RequestId) -> None:
        """Its part of the prompt is computed: at D the first token has come. Only the first call counts."""
        self.ledger.computed(request)
        self._view = None

    def reused(self, request: RequestId, tokens: int) -> None:
        """Of its part of the prompt `tokens` are still to be computed."""
        self.ledger.reused(request, tokens)
        self._view = None

    def emitted(self, request: RequestId, choice: int, tokens: int, *, ended: bool) -> bool:
        """So many more tokens of a choice have come from it; whether more sequences than before are about to end."""
        before = self.ledger.ending
        self.ledger.emitted(request, choice, tokens, ended=ended)
        self._view = None
        return self.ledger.ending > before

    def progressed(self, progress: DecodeProgress) -> None:
        """Where a decode instance stands."""
        self._progress = progress
        self._view = None

    def release(self, request: RequestId) -> None:
        """It holds nothing of `request` any more."""
        self.ledger.release(request)
        self._view = None

    def view(self) -> InstanceView:
        """As a policy sees it."""
        if self._view is None:
            self._view = self._make_view()
        return self._view

    def _make_view(self) -> InstanceView:
        ledger, held = self.ledger, len(self.ledger)
        # The report may be older than the ledger: it never makes more of the prompts done than there is of them.
        partial = min(self._progress.partial_tokens, ledger.pending_tokens)
        work = ledger.work(partial)
        # Each prompt is a step of P, which takes few at a time.
        one_by_one = self.member.role is Role.PREFILL or len(ledger.pending) <= 4
        return InstanceView(
            member=self.member,
            outstanding_requests=held,
            outstanding_tokens=ledger.most_tokens,
            has_room=held < self.most_requests,
            load=self.load,
            placed=self.placed,
            pending_prompts=tuple(ledger.pending.values()) if one_by_one else (ledger.pending_tokens,),
            decode_load=DecodeLoad(
                decodes=ledger.decodes,
                decode_context=self._progress.decode_context if ledger.decodes else 0,
                prefill_tokens=work.prompt_tokens,
                prompts=len(ledger.pending),
            ),
            expected_tokens=work.mix.kv_tokens + work.mix.output_tokens,
            work=work,
        )
