"""What P answers to a taker: a pure decision."""

import hmac

import msgspec

from common.ids import Generation
from common.kv.layout import KVLayout
from common.kv.ticket import Ticket
from transfer.errors import LayoutMismatch, RefusalReason
from transfer.plan import CopyPlan, plan_copy
from transfer.protocol.messages import WIRE_VERSION, Open, Refusal


class OfferView(msgspec.Struct, frozen=True):
    """What the decision sees of an offer."""

    ticket: Ticket
    num_tokens: int
    is_taken: bool


class SourceView(msgspec.Struct, frozen=True):
    """What the decision sees of the source."""

    generation: Generation
    layout: KVLayout
    segment_bytes: int
    offer: OfferView | None
    """The offer under the taker's transfer id."""
    has_ended: bool
    """An offer under this id was there and has ended."""
    may_park: bool
    """There is room and time for the taker to wait."""


class Park(msgspec.Struct, frozen=True):
    """The ticket is of this generation but its job has not come yet: wait for it."""


class Serve(msgspec.Struct, frozen=True):
    """Serve the taker by this plan, in segments of at most `segment_bytes`."""

    plan: CopyPlan
    segment_bytes: int


Verdict = Serve | Park | Refusal


def judge(request: Open, source: SourceView) -> Verdict:
    """Serve, park or refuse. Nothing about an offer is told to a bearer whose secret is wrong."""
    if request.wire_version != WIRE_VERSION:
        return _refuse(RefusalReason.WIRE_VERSION, "wire_version", request.wire_version, WIRE_VERSION)
    if request.ticket.prefill_generation != source.generation:
        return _refuse(
            RefusalReason.GENERATION, "prefill_generation", request.ticket.prefill_generation, source.generation
        )
    if source.offer is None:
        return _judge_unknown(request, source)
    return _judge_offer(request, source, source.offer)


def _judge_unknown(request: Open, source: SourceView) -> Verdict:
    transfer = request.ticket.transfer
    if source.has_ended:
        return Refusal(RefusalReason.ENDED, f"the offer of transfer {transfer!r} has ended; place the request again")
    if source.may_park:
        return Park()
    return Refusal(
        RefusalReason.UNKNOWN_TICKET,
        f"no job for transfer {transfer!r} has come in time, or too many takers wait; place the request again",
    )


def _judge_offer(request: Open, source: SourceView, offer: OfferView) -> Verdict:
    ticket = request.ticket
    if not hmac.compare_digest(ticket.secret, offer.ticket.secret):
        return Refusal(RefusalReason.SECRET, f"the secret for transfer {ticket.transfer!r} is wrong", "secret")
    if ticket.decode_generation != offer.ticket.decode_generation:
        return _refuse(
            RefusalReason.GENERATION,
            "decode_generation",
            ticket.decode_generation,
            offer.ticket.decode_generation,
        )
    if offer.is_taken:
        return Refusal(RefusalReason.ALREADY_TAKEN, f"transfer {ticket.transfer!r} has a taker already")
    if request.num_tokens != offer.num_tokens:
        return _refuse(RefusalReason.NUM_TOKENS, "num_tokens", request.num_tokens, offer.num_tokens)
    try:
        plan = plan_copy(source.layout, request.layout)
    except LayoutMismatch as mismatch:
        return Refusal(RefusalReason.LAYOUT, str(mismatch), mismatch.field)
    segment_bytes = min(request.segment_bytes, source.segment_bytes)
    if segment_bytes < plan.token_bytes_per_layer:
        return Refusal(
            RefusalReason.LIMITS,
            f"segments of {segment_bytes} bytes cannot hold one token of one layer "
            f"({plan.token_bytes_per_layer} bytes): raise segment_bytes",
            "segment_bytes",
        )
    return Serve(plan, segment_bytes)


def _refuse(reason: RefusalReason, field: str, shown: object, wanted: object) -> Refusal:
    return Refusal(reason, f"the taker's {field} is {shown!r}; the source's is {wanted!r}", field)
