"""Which questions are asked over how many connections."""

import msgspec

from services.bench.gateway.questions import STREAM, WHOLE, WHOLE_IN_STEPS, Question

CONNECTIONS = (1, 16, 64)
MIDDLE = 16
"""The connections that the summary speaks of."""


class Case(msgspec.Struct, frozen=True):
    """One kind of load; every system gets it."""

    question: Question
    connections: int

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.question.name}, {self.connections} connections"


def cases() -> tuple[Case, ...]:
    """Whole answers and streams over each number of connections; and whole answers whose tokens come one by one."""
    plain = tuple(Case(question, count) for question in (WHOLE, STREAM) for count in CONNECTIONS)
    return (*plain, Case(WHOLE_IN_STEPS, MIDDLE))
