"""Every way to use the devices of a request's pools, by closed forms; and what is no way, and by how much. Pure."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from common.messages.control import Role
from services.planner.closed_forms.assessing import Assessed, Terms, aggregated, cronus, disaggregated
from services.planner.closed_forms.candidates import Candidate, candidates
from services.planner.closed_forms.lengths import lengths_of
from services.planner.plan import Option, Serving
from services.planner.refusals import Refused, no_plan, refused_strategies
from services.planner.request import PlanRequest

_Found = TypeVar("_Found", Candidate, Assessed)


class Options(msgspec.Struct, frozen=True):
    """What plans of a request can be made of."""

    assessed: tuple[Assessed, ...]
    """Ordered by pool and strategy within a serving and role."""
    refused: tuple[Refused, ...]

    def of(self, serving: Serving) -> tuple[Option, ...]:
        """The options of a serving; none where a role would be missing."""
        return tuple(each.option for each in self.assessed if each.serving is serving)

    def servings(self) -> tuple[Serving, ...]:
        """Those that have options."""
        return tuple(serving for serving in Serving if self.of(serving))

    def assessment(self, serving: Serving, option: Option) -> Assessed:
        """What limits an option of `of(serving)`."""
        return next(each for each in self.assessed if each.serving is serving and each.option == option)


def make_options(request: PlanRequest) -> Options:
    """The options of every serving, and all that was refused. Raises PlanError where there is no option at all."""
    terms = Terms.of(request)
    refused = list(refused_strategies(request.pools))
    lengths = lengths_of(request.workload)
    prefills = _sorted_out(candidates(request, lengths, Role.PREFILL), Candidate, refused)
    decodes = _sorted_out(candidates(request, lengths, Role.DECODE), Candidate, refused)
    wholes = _sorted_out(aggregated(decodes, terms), Assessed, refused)
    found = [
        *wholes,
        *_both_roles(_sorted_out(disaggregated(prefills, decodes, terms), Assessed, refused)),
        *_both_roles(_sorted_out(cronus(prefills, wholes, terms), Assessed, refused)),
    ]
    if not found:
        raise no_plan(refused, request, terms.limits)
    return Options(tuple(found), tuple(refused))


def _sorted_out(each: Iterable[_Found | Refused], kind: type[_Found], refused: list[Refused]) -> list[_Found]:
    """Those of `kind`; the others are appended to `refused`."""
    found = []
    for one in each:
        if isinstance(one, kind):
            found.append(one)
        elif isinstance(one, Refused):
            refused.append(one)
    return found


def _both_roles(assessed: Sequence[Assessed]) -> Sequence[Assessed]:
    roles = {each.option.role for each in assessed}
    return assessed if roles == set(Role) else ()
