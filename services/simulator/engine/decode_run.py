"""Runs of steps in which nothing happens but decoding: their times form an arithmetic progression."""

import math

import msgspec


class DecodeRun(msgspec.Struct, frozen=True):
    """`steps` steps, of which step i (from 0) takes `first + i·increment` seconds.

    n decodes make every step's contexts n tokens longer than the step before, so a time linear in the contexts grows
    by the same amount each step.  `first` > 0, `increment` ≥ 0, `steps` ≥ 1.
    """

    first: float
    increment: float
    steps: int

    def seconds(self, steps: int) -> float:
        """What the first `steps` of them take together: steps·first + increment·steps·(steps-1)/2."""
        return steps * self.first + self.increment * (steps * (steps - 1) // 2)

    def step_at(self, elapsed: float) -> int:
        """Number, in [1, steps], of the step that runs after `elapsed` seconds; at a boundary, of the one ending there.

        It is the least k with seconds(k) ≥ elapsed: the positive root of a·k² + b·k = elapsed with a = increment/2 and
        b = first - a, rounded up, and then set right for what rounding did to the root.
        """
        if elapsed <= self.first or self.steps == 1:
            return 1
        a = self.increment / 2
        b = self.first - a
        root = 2 * elapsed / (b + math.sqrt(b * b + 4 * a * elapsed))
        step = min(max(math.ceil(root), 1), self.steps)
        while step < self.steps and self.seconds(step) < elapsed:
            step += 1
        while step > 1 and self.seconds(step - 1) >= elapsed:
            step -= 1
        return step
