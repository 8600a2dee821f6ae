"""Rendering as transformers does."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.errors import ModelError
from services.text.chat_template import ChatTemplate, TemplateRefused
from services.text.tokenizer import Tokenizer

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " hi <b>&\n\n"}],
    [
        {"role": "user", "content": "日本 😀 <|im_end|>"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": 'and "quotes" {{ 7 * 7 }}'},
    ],
]

TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n    {% if m.role == 'user' %}[{{ m['content'] | trim }}]{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}>{{ eos_token }}{% endif %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if ns.n > 2 %}{% break %}"
    "{% endif %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% if tools is none and not documents and not custom is defined %}plain{% endif %}{{ strftime_now('%Y') }}",
]


def now() -> datetime:
    return datetime.now()


@pytest.mark.parametrize("chat", CHATS)
def test_the_real_model_gets_the_prompt_of_transformers(smollm2_folder: Path, chat: list[dict[str, str]]) -> None:
    tokenizer, theirs = Tokenizer.load(smollm2_folder), AutoTokenizer.from_pretrained(smollm2_folder)
    template = ChatTemplate.load(smollm2_folder, tokenizer.special_tokens, now)
    assert template is not None
    text = template.render(chat)
    assert text == theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(tokenizer.encode(text, add_special_tokens=False)) == ids


@pytest.mark.parametrize("source", TEMPLATES)
def test_what_templates_use_renders_as_in_transformers(byte_level_backend: tokenizers.Tokenizer, source: str) -> None:
    special = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level_backend, chat_template=source, **special)
    for chat in CHATS:
        expected = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert ChatTemplate(source, special, now).render(chat) == expected


def test_the_jinja_file_goes_before_the_config(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path, {}, now) is None
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert rendered(tmp_path) == "default"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered(tmp_path) == "file"


def rendered(folder: Path) -> str:
    template = ChatTemplate.load(folder, {}, now)
    assert template is not None
    return template.render(CHATS[0])


def test_a_template_refuses_in_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, now)
    with pytest.raises(TemplateRefused, match="roles must alternate"):
        template.render(CHATS[0])


@pytest.mark.parametrize(
    "source", ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].clear() }}", "{{ 1/0 }}"]
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate(source, {}, now).render(CHATS[0])


def test_a_template_that_is_no_template_is_an_error_at_load() -> None:
    with pytest.raises(ModelError, match="cannot be parsed"):
        ChatTemplate("{% for %}", {}, now)
