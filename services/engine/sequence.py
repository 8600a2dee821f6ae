"""The engine's mutable record of one sequence: one choice of one job."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from common.costs.shape import StepShape
from common.costs.step import Step
from common.kv.prefix import PrefixKeys
from common.messages.control import FinishReason
from common.messages.sampling import TokenLogprobs
from services.engine.api import ChoiceTokens, DecodeJob, Job, PrefillJob
from services.engine.guide import Guide, allowed_next
from services.engine.runner import Sampled, SampleRequest, ScoreRequest, StepItem
from services.scheduling.continuous import Phase, SequenceView


@dataclass(slots=True, eq=False)
class Sequence:
    """Owned by the engine core; `blocks` are references that this sequence holds in the pool."""

    key: int
    job: Job
    choices: tuple[int, ...]
    """The choices still sampled from this sequence: all of them until the first token, then one. Empty for P."""
    keys: PrefixKeys
    """Of its full blocks."""
    phase: Phase = Phase.WAITING
    computed: int = 0
    external: int = 0
    """Leading tokens whose KV will come from outside; 0 once it has, or once the sequence was preempted."""
    arrival: int = 0
    """Its place among the jobs, the oldest first; all choices of a job share it."""
    blocks: list[int] = field(default_factory=list)
    named: int = 0
    """Leading blocks whose content has been named in the pool, or was found there."""
    reused: int = 0
    """Leading tokens whose KV was there when it was admitted last."""
    is_new: bool = True
    """It has not been admitted before, nor has the sequence that it is a choice of."""
    has_begun: bool = False
    """A step has computed some of it, or of the sequence that it is a choice of."""
    output: list[int] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as they are computed, while `is_scored`."""
    guide: Guide | None = None
    """Where `output` stands in the job's grammar."""

    @property
    def known(self) -> int:
        """Prompt tokens and emitted ones."""
        return len(self.job.prompt) + len(self.output)

    @property
    def partial(self) -> int:
        """Prompt tokens computed here while there is no token yet; 0 at P."""
        if self.output or self.phase is not Phase.RUNNING or not isinstance(self.job, DecodeJob):
            return 0
        return max(0, self.computed - max(self.job.split, self.reused))

    @property
    def is_scored(self) -> bool:
        """Whether the logprobs of the prompt are asked for and have not been told: all of it must be computed here."""
        return isinstance(self.job, DecodeJob) and self.job.sampling.prompt_logprobs is not None and not self.output

    def view(self, is_shared: Callable[[int], bool] | None) -> SequenceView:
        """What the batch decision sees of a sequence that holds blocks.

        `is_shared` None: nobody asks what a preemption would free.
        """
        held = len(self.blocks)
        freeable = held if is_shared is None else sum(not is_shared(block) for block in self.blocks)
        return SequenceView(
            key=self.key,
            phase=self.phase,
            known=self.known,
            computed=self.computed,
            blocks=held,
            freeable=freeable,
        )

    def waiting_view(self, found: int, shared: int, block_size: int) -> SequenceView:
        """Of one that holds none, where `found` blocks with its first tokens are there, `shared` of them in use."""
        return SequenceView(
            key=self.key,
            phase=self.phase,
            known=self.known,
            computed=found * block_size,
            blocks=0,
            freeable=0,
            external=self.external > found * block_size,
            shared=shared * block_size,
        )

    def item(self, count: int) -> StepItem:
        """The step item that computes the next `count` tokens, sampling if they are the last ones known.

        Raises GrammarRefused where the job's grammar cannot be followed further.
        """
        stop = self.computed + count
        return StepItem(
            tokens=self.tokens(self.computed, stop),
            start=self.computed,
            blocks=self.blocks,
            sample=self._sample_request() if stop == self.known else None,
            score=self._score_request(stop),
        )

    def keep_scores(self, count: int, results: tuple[Sampled, ...]) -> tuple[Sampled, ...]:
        """Keep what the step of the next `count` tokens said of the prompt; returns the rest: what it sampled."""
        request = self._score_request(self.computed + count)
        if request is None:
            return results
        scored = len(request.tokens)
        # Not appended: a sequence that was preempted computes its prompt again.
        self.scores[self.computed :] = [one.logprobs for one in results[:scored] if one.logprobs is not None]
        return results[scored:]

    def emit(self, sampled: Sampled) -> ChoiceTokens:
        """One more token of its first choice; what is known of the prompt's tokens is told with it, once."""
        first, scores = len(self.output), tuple(self.scores)
        self.scores = []
        self.output.append(sampled.token)
        if self.guide is not None:
            self.guide.advance(sampled.token)
        return ChoiceTokens(
            request=self.job.request,
            choice=self.choices[0],
            first=first,
            tokens=(sampled.token,),
            logprobs=() if sampled.logprobs is None else (sampled.logprobs,),
            finish=self.finish_after(sampled.token),
            prompt_logprobs=scores,
        )

    def fork(self, key: int, choice: int) -> "Sequence":
        """A sequence for another choice, which goes on from the same tokens; it holds no blocks."""
        output, keys = list(self.output), self.keys.copy()
        child = Sequence(key, self.job, (choice,), keys, arrival=self.arrival, output=output)
        child.is_new, child.has_begun = False, True
        child.guide = None if self.guide is None else self.guide.fork()
        return child

    def finish_after(self, token: int) -> FinishReason | None:
        """Whether emitting `token` (already in `output`) ends the choice."""
        assert isinstance(self.job, DecodeJob)
        if token in self.job.stop_tokens or (self.guide is not None and self.guide.is_over):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= self.job.max_tokens else None

    def tokens(self, start: int, stop: int) -> list[int]:
        """The known tokens of these numbers."""
        prompt = self.job.prompt
        length = len(prompt)
        return [*prompt[start:stop], *self.output[max(0, start - length) : max(0, stop - length)]]

    def _score_request(self, stop: int) -> ScoreRequest | None:
        """Of the prompt's tokens that follow the tokens [computed, stop)."""
        if not self.is_scored:
            return None
        tokens = self.job.prompt[self.computed + 1 : stop + 1]
        assert isinstance(self.job, DecodeJob)
        return ScoreRequest(tokens, self.job.sampling.prompt_logprobs or 0) if tokens else None

    def _sample_request(self) -> SampleRequest | None:
        if isinstance(self.job, PrefillJob):
            return None
        job = self.job
        is_early = len(self.output) < job.min_tokens
        guide = self.guide
        return SampleRequest(
            params=job.sampling,
            choices=self.choices,
            position=self.known,
            prompt=job.prompt,
            output=self.output,
            forbidden=job.stop_tokens if is_early and guide is None else (),
            allowed=None if guide is None else allowed_next(guide, job.stop_tokens, is_too_early=is_early),
        )


def step_of(batch: Collection[tuple[Sequence, int]]) -> Step:
    """What a step computes that advances each sequence by `count` tokens from where it stands."""
    chunk_tokens = chunk_context = decodes = decode_context = 0
    for sequence, count in batch:
        if count > 1:
            chunk_tokens += count
            chunk_context += sequence.computed
        else:
            decodes += 1
            decode_context += sequence.computed
    is_prefill = len(batch) == 1 and all(
        isinstance(sequence.job, PrefillJob) and count > 1 and count == sequence.known for sequence, count in batch
    )
    return Step(StepShape(chunk_tokens, chunk_context, decodes, decode_context), is_prefill)
