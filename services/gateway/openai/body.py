"""From the bytes of a body to the fields of its type; every misfit is an ApiError that names the parameter."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from services.gateway.openai.errors import ApiError, invalid
from services.gateway.openai.types import GenerationFields

IGNORED: Final = frozenset({"metadata", "store", "service_tier"})
"""Accepted without effect, because unchanged clients send them."""

VERBATIM: Final = frozenset({"schema", "parameters", "logit_bias"})
"""Objects whose names are the client's own (JSON Schemas, tokens): a null in them is a value."""

Fields = TypeVar("Fields", bound=GenerationFields)


def read_body(body: bytes, kind: type[Fields]) -> Fields:
    """The fields in a JSON body; ApiError."""
    try:
        values = _without_nulls(msgspec.json.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise invalid(f"the body must be a JSON object, got {type(values).__name__}", code="invalid_json")
    values = {name: value for name, value in values.items() if name not in IGNORED}
    for name in values.keys() - set(kind.__struct_fields__):
        raise _unknown(name, kind)
    try:
        return msgspec.convert(values, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _misfit(error, values) from error


def _without_nulls(value: Any) -> Any:
    """A null means the parameter was not given, at any depth."""
    if isinstance(value, dict):
        return {
            name: inner if name in VERBATIM else _without_nulls(inner)
            for name, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _unknown(name: str, kind: type[GenerationFields]) -> ApiError:
    near = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return invalid(f"the parameter {name!r} is not supported{hint}", name, "unsupported_parameter")


def _misfit(error: msgspec.ValidationError, values: Mapping[str, Any]) -> ApiError:
    """Name the parameter: msgspec ends its message with the path of the value, or names the field itself."""
    reason, _, path = str(error).partition(" - at ")
    where = path.rpartition("$")[2].strip("`.").replace("[...]", "")
    field = re.search(r"(?:required|unknown) field `([^`]+)`", reason)
    param = ".".join(part for part in (where, field and field[1]) if part)
    got = f"{where}={values[where]!r}: " if where in values else f"{where}: " if where else ""
    return invalid(f"{got}{reason[0].lower()}{reason[1:]}", param or None)
