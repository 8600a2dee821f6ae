"""What one engine on one device says: transformers' own generate, with the margins that decide near-ties."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

NEAR_TIE = 5e-4
"""Below this top-2 margin of the reference a different token is rounding, not an error (promise 1)."""


class Expected(msgspec.Struct, frozen=True):
    prompt_tokens: int
    tokens: tuple[int, ...]
    """Generated, the end token included."""
    pieces: tuple[bytes, ...]
    """Each generated token's bytes, as the API's logprobs show them; the end token is the last where there is one."""
    margins: tuple[float, ...]
    """For each generated token: the reference's best logit minus its second best."""
    logprobs: tuple[float, ...]
    """Of each generated token."""
    text: str
    finish_reason: str


class Reference:
    """Greedy answers of the model in `folder`, float32, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, prompt: str, max_tokens: int) -> Expected:
        inputs = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = self._model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        length = inputs["input_ids"].shape[1]
        tokens = tuple(output.sequences[0, length:].tolist())
        best = [torch.topk(logits[0].float(), 2).values for logits in output.logits]
        ended = tokens[-1] in self._ends()
        return Expected(
            prompt_tokens=length,
            tokens=tokens,
            pieces=tuple(self._bytes_of(token) for token in tokens),
            margins=tuple((first - second).item() for first, second in best),
            logprobs=tuple(
                torch.log_softmax(logits[0].float(), -1)[token].item()
                for logits, token in zip(output.logits, tokens, strict=True)
            ),
            text=self._tokenizer.decode(tokens, skip_special_tokens=True),
            finish_reason="stop" if ended else "length",
        )

    def _bytes_of(self, token: int) -> bytes:
        """A byte-level vocabulary writes each byte as a character of its own."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return piece.encode() if token in self._ends() else bytes(self._byte_of[character] for character in piece)

    def _ends(self) -> tuple[int, ...]:
        ends = self._model.generation_config.eos_token_id
        return tuple(ends) if isinstance(ends, list) else (ends,)


def first_difference(expected: Sequence[object], found: Sequence[object]) -> int | None:
    """The index of the first token that differs; None when the answers are equal."""
    for index, (mine, theirs) in enumerate(zip(expected, found, strict=False)):
        if mine != theirs:
            return index
    return None if len(expected) == len(found) else min(len(expected), len(found))
