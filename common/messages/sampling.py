"""How tokens are chosen. Part of a decode job, so it travels; the engine and the OpenAI adapter share it."""

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sampling of one request. `temperature == 0` is greedy; then top_k, top_p, min_p and seed have no effect.

    Order of application: the grammar's mask, penalties and bias on the logits, temperature, then top_k, top_p, min_p
    on the tempered distribution, then Gumbel-max with noise keyed by (seed, choice, position, token id).
    """

    temperature: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output tokens, as in transformers; 1 is none."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    """Frequency and presence count output tokens only, as the OpenAI API defines them."""
    logit_bias: dict[int, float] = {}
    seed: int = 0
    """Always set by the gateway (drawn there when the client gives none), so that a retry samples the same."""
    grammar: str = ""
    """What the tokens must spell, in the words of `common.grammar`; empty: anything. It masks the logits before all
    else, and stop tokens are sampled only where it may end."""
    logprobs: int | None = None
    """None: none; k: the chosen token's logprob and the k likeliest tokens' (of the unmodified distribution)."""
    prompt_logprobs: int | None = None
    """The same of each token of the prompt but the first, after those before it. Who asks needs every position of the
    prompt computed in one place: split 0, and no KV of earlier requests."""


class TokenLogprobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Natural-log probabilities of one token, emitted or of the prompt, before penalties, bias and temperature."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), likeliest first."""
