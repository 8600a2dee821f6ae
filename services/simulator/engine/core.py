"""The simulated engine without its clock: who holds blocks, what each step computes, and what has been said.

It decides by the very functions of which services.scheduling.continuous composes its decision, on sums where the live
engine's core has a view of each sequence: only a step that preempts looks at all of them.
"""

from services.scheduling.continuous import BatchLimits, Phase, admit, grow, share_budget
from services.simulator.engine.decode_crowd import DecodeCrowd
from services.simulator.engine.events import (
    BlocksReserved,
    EngineEvent,
    Finished,
    FirstToken,
    GapRecorder,
    PrefillAdvanced,
    PrefillComputed,
    Refused,
    SimulationError,
)
from services.simulator.engine.records import Batch, EngineCounters, SimulatedSequence, StepInProgress
from services.simulator.engine.waiting_queue import WaitingQueue


class SimulatedCore:
    """Sequences and the blocks they hold, by number only. `events` is appended to; the engine hands it on."""

    def __init__(self, limits: BatchLimits, num_blocks: int, gaps: GapRecorder, events: list[EngineEvent]) -> None:
        self.limits = limits
        self.num_blocks = num_blocks
        self.used = 0
        """Blocks held."""
        self.crowd = DecodeCrowd(limits)
        self.prompts: list[SimulatedSequence] = []
        """Those that run outside the crowd, in order of arrival."""
        self.waiting = WaitingQueue()
        self.by_key: dict[int, SimulatedSequence] = {}
        self.counters = EngineCounters()
        self._gaps = gaps
        self._events = events
        self._arrivals = 0

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.num_blocks - self.used

    # ------------------------------------------------------------ commands

    def accept(self, key: int, prompt: int, output: int, split: int, now: float) -> None:
        """See SimulatedEngine.submit_decode; `output` 0 is a prefill job."""
        if key in self.by_key:
            raise SimulationError(f"job {key} was submitted again while it is here; give each job a key of its own")
        # The last token emitted is never computed, so it needs no room.
        needed, capacity = prompt + max(0, output - 1), self.num_blocks * self.limits.block_size
        if needed > capacity:
            reason = f"{prompt + output} tokens (prompt and output); the KV memory of this instance holds {capacity}"
            self._events.append(Refused(key, now, reason))
            return
        sequence = SimulatedSequence(key, self._arrivals, prompt, output, external=split, known=prompt, split=split)
        self._arrivals += 1
        self.by_key[key] = sequence
        self.waiting.push(sequence)

    def land(self, key: int) -> None:
        """See SimulatedEngine.kv_landed."""
        sequence = self.by_key.get(key)
        if sequence is not None and sequence.phase is Phase.RECEIVING:
            sequence.computed, sequence.external = sequence.external, 0
            self._run([sequence])

    def end(self, key: int) -> None:
        """See SimulatedEngine.end."""
        sequence = self.by_key.pop(key, None)
        if sequence is None:
            return
        if sequence.phase is Phase.WAITING:
            self.waiting.discard(sequence)
        else:
            self._release(sequence)

    def emitted(self, made: int) -> list[tuple[int, int]]:
        """Of every job with a token, its key and the tokens that it has emitted after `made` steps of the run in
        progress; takes time in proportion to the jobs.
        """
        known = [
            (s, self.crowd.computed(s) + 1 + made if s.finish_tick >= 0 else s.known) for s in self.by_key.values()
        ]
        return [(s.key, tokens - s.prompt) for s, tokens in known if tokens > s.prompt]

    def _run(self, sequences: list[SimulatedSequence]) -> None:
        for sequence in sequences:
            sequence.phase = Phase.RUNNING
        self.prompts = sorted([*self.prompts, *sequences], key=lambda sequence: sequence.order)

    def _release(self, sequence: SimulatedSequence) -> None:
        """Its blocks are free and it runs no more."""
        if sequence.finish_tick >= 0:
            self.crowd.remove(sequence)
            self.used -= self.limits.blocks_for(sequence.computed)
            return
        if sequence.phase is Phase.RUNNING:
            self.prompts.remove(sequence)
        self.used -= self.limits.blocks_for(sequence.known)

    # ------------------------------------------------------------ the begin of a step

    def arrange(self, now: float) -> Batch:
        """Decide the next step and give it its blocks. The crowd makes it too, unless it is empty."""
        # With enough for all, `grow` gives a block to each who needs one: there is no need to ask.
        preempted = self._preempt(now) if self.crowd.blocks_needed() > self.free else []
        self.used += self.crowd.blocks_needed()
        running = self.prompts
        admitted = self._admit(now) if self.waiting and not preempted else []
        singles = [s for s in running if s.known - s.computed == 1]
        prompts = [s for s in running if s.known - s.computed > 1] if singles else running.copy()
        prompts += [s for s in admitted if not s.external]
        return Batch(preempted, admitted, singles, self._share(prompts, len(singles)) if prompts else [])

    def _preempt(self, now: float) -> list[SimulatedSequence]:
        views = [s.view(self.limits) for s in self.prompts] + self.crowd.views()
        views.sort(key=lambda view: view.key)
        running = {s.order: s for s in self.by_key.values() if s.phase is Phase.RUNNING}
        preempted = [running[order] for order in grow(views, self.free, self.limits).preempted]
        for sequence in preempted:
            if sequence.finish_tick >= 0:
                sequence.last_token_at = now
            self._release(sequence)
            sequence.computed = 0
            sequence.phase = Phase.WAITING
            self.waiting.put_back(sequence)
        self.counters.preemptions += len(preempted)
        return preempted

    def _admit(self, now: float) -> list[SimulatedSequence]:
        holders = len(self.by_key) - len(self.waiting)
        running = self.crowd.count + len(self.prompts)
        count = admit(self.waiting.known(), holders, running, self.free, self.limits)
        if count == 0:
            return []
        admitted = self.waiting.take(count)
        for sequence in admitted:
            self.used += self.limits.blocks_for(sequence.known)
            sequence.phase = Phase.RECEIVING
            if sequence.external or sequence.is_prefill:
                self._events.append(BlocksReserved(sequence.key, now))
        self._run([sequence for sequence in admitted if not sequence.external])
        return admitted

    def _share(self, prompts: list[SimulatedSequence], singles: int) -> list[tuple[SimulatedSequence, int]]:
        budget = self.limits.budget
        left = None if budget is None else budget - self.crowd.count - singles
        counts = share_budget([s.known - s.computed for s in prompts], left, self.limits)
        return [(sequence, count) for sequence, count in zip(prompts, counts, strict=True) if count > 0]

    # ------------------------------------------------------------ the end of a step

    def complete(self, step: StepInProgress) -> None:
        """The step, or run of steps, has ended: everybody is that much further, and some have finished."""
        crowd, run, batch = self.crowd, step.run, step.batch
        self._count(step)
        if crowd.count:
            if run.steps == 1:
                self._gaps.record_gap(run.first, crowd.count)
            else:
                self._gaps.record_run(run.first, run.increment, run.steps, crowd.count)
                self.used += crowd.growth(run.steps - 1)
        for sequence in crowd.advance(run.steps):
            self._finish(sequence, step.ends_at)
        gone: list[SimulatedSequence] = []
        for sequence, count in [*((single, 1) for single in batch.singles), *batch.chunks]:
            sequence.computed += count
            if sequence.output == 0:
                start = sequence.computed - count
                self._events.append(PrefillAdvanced(sequence.key, step.began, step.ends_at, start, sequence.computed))
            if sequence.computed == sequence.known:
                gone.append(sequence)
                self._leave(sequence, step.ends_at)
        if gone:
            self.prompts = [s for s in self.prompts if s not in gone]

    def _count(self, step: StepInProgress) -> None:
        counters, batch, steps = self.counters, step.batch, step.run.steps
        counters.steps += steps
        counters.busy_s += step.ends_at - step.began
        counters.output_tokens += steps * self.crowd.count
        if batch.chunks:
            counters.mixed_steps += 1
            counters.prompt_tokens += sum(count for _, count in batch.chunks)

    def _leave(self, sequence: SimulatedSequence, at: float) -> None:
        """All it knows is computed: a prefill job holds it, any other emits a token."""
        if sequence.is_prefill:
            sequence.phase = Phase.HOLDING
            self._events.append(PrefillComputed(sequence.key, at))
        else:
            self._emit(sequence, at)

    def _emit(self, sequence: SimulatedSequence, at: float) -> None:
        """A token that does not come out of the crowd: the first one, or the first after a preemption."""
        if sequence.known == sequence.prompt:
            self._events.append(FirstToken(sequence.key, at))
        else:
            self._gaps.record_gap(at - sequence.last_token_at, 1)
        self.counters.output_tokens += 1
        sequence.known += 1
        if sequence.known - sequence.prompt == sequence.output:
            self._finish(sequence, at)
        else:
            self.crowd.add(sequence)

    def _finish(self, sequence: SimulatedSequence, at: float) -> None:
        self.used -= self.limits.blocks_for(sequence.computed)
        del self.by_key[sequence.key]
        self._events.append(Finished(sequence.key, at))
