"""What P answers to a taker: a pure decision."""

import hmac

import msgspec

from common.ids import Generation
from common.kv.ticket import Ticket
from transfer.errors import RefusalReason, brief
from transfer.protocol.messages import Capabilities, Open, Refusal
from transfer.protocol.negotiation import Agreement, agree


class OfferView(msgspec.Struct, frozen=True):
    """What the decision sees of an offer."""

    ticket: Ticket
    num_tokens: int
    is_taken: bool


class SourceView(msgspec.Struct, frozen=True):
    """What the decision sees of the source."""

    generation: Generation
    capabilities: Capabilities
    offer: OfferView | None
    """The offer under the taker's transfer id."""
    has_ended: bool
    """An offer under this id was there and has ended."""
    may_park: bool
    """There is room and time for the taker to wait."""


class Park(msgspec.Struct, frozen=True):
    """The ticket is of this generation but its job has not come yet: wait for it."""


Verdict = Agreement | Park | Refusal


def judge(request: Open, source: SourceView) -> Verdict:
    """Serve, park or refuse. Nothing about an offer is told to a bearer whose secret is wrong."""
    if source.capabilities.versions.common_with(request.capabilities.versions) is None:
        return agree(source.capabilities, request.capabilities, request.region)
    if request.ticket.prefill_generation != source.generation:
        return _refuse(
            RefusalReason.GENERATION, "prefill_generation", request.ticket.prefill_generation, source.generation
        )
    if source.offer is None:
        return _judge_unknown(request, source)
    return _judge_offer(request, source, source.offer)


def _judge_unknown(request: Open, source: SourceView) -> Verdict:
    transfer = brief(request.ticket.transfer)
    if source.has_ended:
        return Refusal(RefusalReason.ENDED, f"the offer of transfer {transfer} has ended; place the request again")
    if source.may_park:
        return Park()
    return Refusal(
        RefusalReason.UNKNOWN_TICKET,
        f"no job for transfer {transfer} has come in time, or too many takers wait; place the request again",
    )


def _judge_offer(request: Open, source: SourceView, offer: OfferView) -> Verdict:
    ticket = request.ticket
    if not hmac.compare_digest(ticket.secret, offer.ticket.secret):
        return Refusal(RefusalReason.SECRET, f"the secret for transfer {brief(ticket.transfer)} is wrong", "secret")
    if ticket.decode_generation != offer.ticket.decode_generation:
        return _refuse(
            RefusalReason.GENERATION,
            "decode_generation",
            ticket.decode_generation,
            offer.ticket.decode_generation,
        )
    if offer.is_taken:
        return Refusal(RefusalReason.ALREADY_TAKEN, f"transfer {brief(ticket.transfer)} has a taker already")
    if request.num_tokens != offer.num_tokens:
        return _refuse(RefusalReason.NUM_TOKENS, "num_tokens", request.num_tokens, offer.num_tokens)
    if request.first_token >= request.num_tokens:
        return _refuse(RefusalReason.NUM_TOKENS, "first_token", request.first_token, f"below {request.num_tokens}")
    return agree(source.capabilities, request.capabilities, request.region)


def _refuse(reason: RefusalReason, field: str, shown: object, wanted: object) -> Refusal:
    return Refusal(reason, f"the taker's {field} is {brief(shown)}; the source's is {brief(wanted)}", field)
