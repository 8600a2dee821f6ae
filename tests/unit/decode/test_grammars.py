"""Grammars for a model's tokens: what is compiled, what is kept, and sampling by them from logits by chance."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import pytest
import torch

from common.errors import GrammarRefused
from common.messages.sampling import SamplingParams
from services.decode.grammars import KEPT, Grammars
from services.decode.vocabulary import Vocabulary
from services.engine.guide import Grammar, allowed_next
from services.engine.runner import SampleRequest
from services.engine.sampling.sampling import Sampler
from services.engine.twin.deterministic_model import VOCAB_SIZE, write_deterministic_model
from services.text.json_grammar import json_grammar
from services.text.tokenizer import Tokenizer
from services.text.tools import Tool, calls_grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["a", 'b"c', 3, None]},
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 500}, "maxItems": 3},
    },
    "required": ["word", "kind", "numbers"],
    "additionalProperties": False,
}
END = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deterministic_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def grammars(folder: Path) -> AsyncIterator[Grammars]:
    made = Grammars(folder, VOCAB_SIZE)
    yield made
    made.close()


def sampled(grammar: Grammar, seed: int, temperature: float, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """An answer of logits that are noise, ended where the grammar ends."""
    guide = grammar.guide()
    most = 400 if vocab_size < 1000 else 80
    logits = torch.randn(most, vocab_size, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(temperature=temperature, seed=seed)
    output: list[int] = []
    while not guide.is_over and len(output) < most:
        allowed = allowed_next(guide, (END,), is_too_early=False)
        request = SampleRequest(params, (0,), len(output), (), output, allowed=allowed)
        ((one,),) = Sampler().sample(logits[len(output)][None], [request])
        output.append(one.token)
        guide.advance(one.token)
    return output


async def test_what_is_sampled_is_valid_json_at_any_temperature(grammars: Grammars, folder: Path) -> None:
    grammar = await grammars.compiled(json_grammar(SCHEMA))
    tokenizer = Tokenizer.load(folder)
    texts = {tokenizer.decode(sampled(grammar, seed, 1.5)) for seed in range(12)}
    texts |= {tokenizer.decode(sampled(grammar, seed, 0.0)) for seed in range(4)}
    assert len(texts) == 16
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


async def test_guides_of_one_grammar_are_apart_and_forks_go_on_from_where_they_stand(grammars: Grammars) -> None:
    grammar = await grammars.compiled('start: "ab" | "ac" | "ad"')
    first, second = grammar.guide(), grammar.guide()
    first.advance(ord("a") - ord("!"))  # the byte-level vocabulary is sorted by its characters
    fork = first.fork()
    fork.advance(ord("c") - ord("!"))
    assert fork.is_over
    assert fork.may_end()
    assert not first.is_over
    assert not first.may_end()
    assert first.allowed() != second.allowed()
    assert second.allowed() == grammar.guide().allowed()


async def test_the_last_used_stay_compiled(grammars: Grammars) -> None:
    first = await grammars.compiled('start: "0"')
    assert await grammars.compiled('start: "0"') is first
    for i in range(1, KEPT):
        await grammars.compiled(f'start: "{i}"')
    assert await grammars.compiled('start: "0"') is first
    await grammars.compiled('start: "more"')
    assert await grammars.compiled('start: "0"') is first
    for i in range(KEPT):
        await grammars.compiled(f'start: "b{i}"')
    assert await grammars.compiled('start: "0"') is not first


async def test_nonsense_is_refused_and_so_is_a_model_without_a_tokenizer(grammars: Grammars, tmp_path: Path) -> None:
    with pytest.raises(GrammarRefused):
        await grammars.compiled("start: missing")
    bare = Grammars(tmp_path, VOCAB_SIZE)
    with pytest.raises(GrammarRefused, match="tokenizer"):
        await bare.compiled('start: "a"')
    bare.close()


def test_the_real_vocabulary_spells_what_our_detokenizer_shows(smollm2_folder: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_folder)
    vocabulary = Vocabulary.of(tokenizer, 49_152)
    assert vocabulary.spells_exactly
    assert vocabulary.tokenizer.vocab_size == 49_152
    for text in ('{"a": 1}', "日本 😀\n\t", " <tool_call>"):
        tokens = list(tokenizer.encode(text, add_special_tokens=False))
        assert vocabulary.tokenizer.decode_bytes(tokens) == text.encode()
    assert vocabulary.tokenizer.is_special_token(min(tokenizer.eos_ids))


async def test_answers_of_the_real_vocabulary(smollm2_folder: Path) -> None:
    grammars = Grammars(smollm2_folder, 49_152)
    tokenizer = Tokenizer.load(smollm2_folder)
    grammar = await grammars.compiled(json_grammar(SCHEMA))
    call = await grammars.compiled(calls_grammar([Tool("look", SCHEMA)], must_call=True, most_calls=1))
    grammars.close()
    for seed in range(1, 2):
        jsonschema.validate(json.loads(tokenizer.decode(sampled(grammar, seed, 1.5, 49_152))), SCHEMA)
        text = tokenizer.decode(sampled(call, seed, 1.5, 49_152))
        head, tail = '<tool_call>\n{"name": "look", "arguments": ', "}\n</tool_call>"
        assert text.startswith(head)
        assert text.endswith(tail)
        jsonschema.validate(json.loads(text[len(head) : -len(tail)]), SCHEMA)
