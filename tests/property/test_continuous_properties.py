"""The batch decision under any state: bounds hold, and a closed set of sequences always finishes."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.scheduling.continuous import BatchLimits, Phase, SequenceView, StepPlan, decide


@dataclass
class Simulated:
    prompt: int
    output: int
    external: int
    emitted: int = 0
    computed: int = 0
    blocks: int = 0
    phase: Phase = Phase.WAITING

    @property
    def known(self) -> int:
        return self.prompt + self.emitted

    def view(self, key: int) -> SequenceView:
        return SequenceView(
            key, self.phase, self.known, self.computed, self.blocks, self.blocks, external=self.external > 0
        )


def perform(plan: StepPlan, sequences: dict[int, Simulated], free: int, limits: BatchLimits) -> int:
    for key in plan.preempt:
        sequence = sequences[key]
        assert sequence.phase is Phase.RUNNING
        free += sequence.blocks
        sequence.blocks = sequence.computed = 0
        sequence.phase = Phase.WAITING
    for key in plan.admit:
        sequence = sequences[key]
        assert sequence.phase is Phase.WAITING
        sequence.blocks = limits.blocks_for(sequence.known)
        free -= sequence.blocks
        sequence.phase = Phase.RECEIVING if sequence.external else Phase.RUNNING
    for key in plan.grow:
        sequences[key].blocks += 1
        free -= 1
    assert free >= 0
    for item in plan.work:
        sequence = sequences[item.key]
        assert sequence.phase is Phase.RUNNING
        assert item.count >= 1
        sequence.computed += item.count
        assert sequence.computed <= sequence.known
        assert limits.blocks_for(sequence.computed) <= sequence.blocks
        if sequence.computed == sequence.known:
            sequence.emitted += 1
        if sequence.emitted == sequence.output:
            free += sequence.blocks
            del sequences[item.key]
    return free


@given(
    requests=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.booleans()), min_size=1, max_size=12),
    block_size=st.sampled_from([1, 3, 4, 16]),
    spare=st.integers(0, 6),
    max_sequences=st.integers(1, 6),
    budget=st.integers(1, 24),
    landing=st.integers(1, 4),
)
def test_every_sequence_finishes_within_the_bounds(
    requests: list[tuple[int, int, bool]],
    block_size: int,
    spare: int,
    max_sequences: int,
    budget: int,
    landing: int,
) -> None:
    limits = BatchLimits(block_size=block_size, max_sequences=max_sequences, budget=max(budget, max_sequences))
    largest = max(limits.blocks_for(prompt + output - 1) for prompt, output, _ in requests)
    total = free = largest + spare
    sequences = {
        key: Simulated(prompt, output, external=prompt - 1 if external else 0)
        for key, (prompt, output, external) in enumerate(requests)
    }
    tokens = sum(prompt + output for prompt, output, _ in requests)
    for step in range(40 * tokens + 100):
        if not sequences:
            break
        views = [sequence.view(key) for key, sequence in sorted(sequences.items())]
        plan = decide(views, free, limits)
        assert limits.budget is not None
        assert sum(item.count for item in plan.work) <= limits.budget
        free = perform(plan, sequences, free, limits)
        assert sum(s.phase is not Phase.WAITING for s in sequences.values()) <= max_sequences
        receiving = [s for s in sequences.values() if s.phase is Phase.RECEIVING]
        if receiving and (step % landing == 0 or not plan.work):
            first = receiving[0]
            first.computed, first.external, first.phase = first.external, 0, Phase.RUNNING
    assert not sequences, "some sequence never finished"
    assert free == total
