"""The messages that start a request at its instances."""

from common.kv.ticket import Ticket
from common.messages.control import RunDecode, RunPrefill
from services.scheduling.lifecycle.events import Arrived, Send
from services.scheduling.membership.members import Member


def jobs_of(arrived: Arrived, split: int, prefill: Member | None, decode: Member, deadline_s: float) -> list[Send]:
    """The jobs of P and D, both bearing the ticket; D's alone, without one, where `prefill` is None (split 0).

    P gets the tokens [0, split), D the whole prompt. `deadline_s` is what remains of the request's time.
    """
    if prefill is None:
        return [_decode_job(arrived, split, None, decode, deadline_s)]
    ticket = Ticket(
        transfer=arrived.transfer,
        secret=arrived.secret,
        prefill_generation=prefill.generation,
        decode_generation=decode.generation,
        endpoints=prefill.endpoints,
    )
    prefill_job = RunPrefill(
        request=arrived.spec.request,
        prompt=arrived.spec.prompt[:split],
        ticket=ticket,
        deadline_s=deadline_s,
    )
    return [Send(prefill.instance, prefill_job), _decode_job(arrived, split, ticket, decode, deadline_s)]


def _decode_job(arrived: Arrived, split: int, ticket: Ticket | None, decode: Member, deadline_s: float) -> Send:
    spec = arrived.spec
    job = RunDecode(
        request=spec.request,
        prompt=spec.prompt,
        split=split,
        ticket=ticket,
        sampling=spec.sampling,
        max_tokens=spec.max_tokens,
        choices=spec.choices,
        stop_tokens=spec.stop_tokens,
        min_tokens=spec.min_tokens,
        deadline_s=deadline_s,
    )
    return Send(decode.instance, job)
