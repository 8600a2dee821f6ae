"""The right to take over one request's KV: minted by the gateway, shown by D, known by P."""

import msgspec

from common.ids import Generation, TransferId


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hand-off. `secret` proves that the bearer got it from the gateway; compare it in constant time.

    The generations fence: a P or D that has restarted since the ticket was minted refuses it.
    `endpoints` are P's data endpoints as it registered them, such as "tcp://127.0.0.1:41001" or "inproc://p0".
    """

    transfer: TransferId
    secret: bytes
    prefill_generation: Generation
    decode_generation: Generation
    endpoints: tuple[str, ...]
