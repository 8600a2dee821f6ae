"""All sequences that decode, as sums: a step of the crowd costs the same whether it has one member or a thousand."""

import heapq

from services.scheduling.continuous import BatchLimits, Phase, SequenceView
from services.simulator.engine.records import SimulatedSequence


class DecodeCrowd:
    """Sequences that each compute one token in every step.

    Steps are counted in ticks.  A member that joined at tick j with c tokens computed has c + (t - j) at the begin of
    tick t, so it needs a new block in every tick t with t ≡ j - c (mod block size), and the tick in which it emits its
    last token is known when it joins.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.tick = 0
        """The number of the next step, or of the step in progress."""
        self.count = 0
        self.context = 0
        """Tokens computed, summed over the members."""
        self._limits = limits
        self._members: dict[int, SimulatedSequence] = {}
        self._by_need = [0] * limits.block_size
        """Members by the residue of the ticks in which they need a block."""
        self._finishes: list[tuple[int, int]] = []
        """A heap of (tick, order); an entry is stale unless that member still finishes in that tick.

        No entry is of a tick that has passed.
        """

    def add(self, sequence: SimulatedSequence) -> None:
        """From the next step on it decodes; it has one token to compute and at least one to emit."""
        sequence.joined = self.tick
        sequence.finish_tick = self.tick + sequence.prompt + sequence.output - sequence.known - 1
        self._members[sequence.order] = sequence
        self._by_need[(self.tick - sequence.computed) % len(self._by_need)] += 1
        self.count += 1
        self.context += sequence.computed
        heapq.heappush(self._finishes, (sequence.finish_tick, sequence.order))

    def remove(self, sequence: SimulatedSequence) -> None:
        """It decodes no more; `computed` and `known` say again how far it is."""
        del self._members[sequence.order]
        self._by_need[(sequence.joined - sequence.computed) % len(self._by_need)] -= 1
        sequence.computed += self.tick - sequence.joined
        sequence.known = sequence.computed + 1
        sequence.finish_tick = -1
        self.count -= 1
        self.context -= sequence.computed

    def blocks_needed(self) -> int:
        """Blocks that the members need for the step of this tick."""
        return self._by_need[self.tick % len(self._by_need)]

    def growth(self, steps: int) -> int:
        """Blocks that they need in the `steps` steps after the one of this tick."""
        cycles, rest = divmod(steps, len(self._by_need))
        first = self.tick + 1
        return cycles * self.count + sum(self._by_need[(first + i) % len(self._by_need)] for i in range(rest))

    def steps_ahead(self, free_blocks: int) -> int:
        """How many steps they can make, this tick's first (its blocks are taken already), until one of them finishes
        or `free_blocks` no longer suffice; after one has left, it may be fewer. There must be a member.
        """
        # Whether the entry is stale does not matter: the next steps are asked for then.
        after = self._finishes[0][0] - self.tick
        if after == 0 or self.growth(after) <= free_blocks:
            return after + 1
        # A cycle of block_size steps takes a block for each; what is left suffices for less than one more cycle.
        cycles, free_blocks = divmod(free_blocks, self.count)
        after = cycles * len(self._by_need)
        while (needed := self._by_need[(self.tick + 1 + after) % len(self._by_need)]) <= free_blocks:
            free_blocks -= needed
            after += 1
        return after + 1

    def advance(self, steps: int) -> list[SimulatedSequence]:
        """All members make `steps` steps; returns those that have finished, in order of arrival, and forgets them.

        None may finish before the last of these steps.
        """
        self.tick += steps
        self.context += steps * self.count
        finished: list[SimulatedSequence] = []
        while self._finishes and self._finishes[0][0] < self.tick:
            tick, order = heapq.heappop(self._finishes)
            member = self._members.get(order)
            if member is not None and member.finish_tick == tick:
                self.remove(member)
                finished.append(member)
        return finished

    def computed(self, member: SimulatedSequence) -> int:
        """Tokens of it whose KV is in its blocks at the begin of this tick."""
        return member.computed + self.tick - member.joined

    def views(self) -> list[SequenceView]:
        """What the batch decision sees of the members; takes time in proportion to their number."""
        blocks_for = self._limits.blocks_for
        return [
            SequenceView(order, Phase.RUNNING, computed + 1, computed, blocks_for(computed), blocks_for(computed))
            for order, member in self._members.items()
            for computed in (self.computed(member),)
        ]

    def is_clear(self) -> bool:
        """Whether every sum is zero."""
        return not (self.count or self.context or self._members or any(self._by_need))
