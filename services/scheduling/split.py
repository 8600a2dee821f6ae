"""The split s of a prompt, from the words in which users write it."""

from common.errors import PdmeshError


class SplitError(PdmeshError, ValueError):
    """A split is not one of the forms allowed; the message names it and them."""


def resolve_split(split: str | int | float, prompt_tokens: int) -> int:
    """Number of prompt tokens whose KV a prefill instance computes, in [0, L-1] with L = `prompt_tokens` ≥ 1.

    "full" is L-1; an int is tokens, clamped to L-1; a float f in [0, 1] is round(f·(L-1)), halves to even.
    The type decides: 1 is one token, 1.0 is all. Raises SplitError for anything else, bool and NaN included.
    """
    if prompt_tokens < 1:
        raise SplitError(f"a prompt of {prompt_tokens!r} tokens cannot be split; send at least 1 token")
    most = prompt_tokens - 1
    if split == "full":
        return most
    if isinstance(split, int) and not isinstance(split, bool) and split >= 0:
        return min(split, most)
    if isinstance(split, float) and 0.0 <= split <= 1.0:
        return round(split * most)
    raise SplitError(
        f'split {split!r} is not allowed: give "full", a number of tokens (an integer ≥ 0), '
        "or a share of the prompt (a float in [0.0, 1.0])"
    )
