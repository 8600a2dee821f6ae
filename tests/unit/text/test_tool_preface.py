"""How a model is told of tools: by its own template where that teaches our form of calls, else in plain words."""

from datetime import datetime
from typing import Any

from services.text.chat_template import ChatTemplate
from services.text.tool_preface import preface
from services.text.tools import Tool, called

TOOL = Tool("look", {"type": "object", "properties": {"at": {"type": "string"}}}, "Looks at something.")
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "What is there?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "content": "water", "tool_call_id": "c1"},
]
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
HERMES = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools> <tool_call>{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} {{ c.function.arguments.at }}</tool_call>{% endfor %}"
    "{% endfor %}"
)


def rendered(source: str, messages: list[dict[str, Any]], *tools: Tool, must_call: bool = False) -> str:
    return ChatTemplate(source, {}, lambda: datetime(2026, 1, 1)).render(messages, tools, must_call=must_call)


def test_a_template_that_teaches_calls_is_given_the_tools_and_turns_as_they_are() -> None:
    text = rendered(HERMES, TALK, TOOL)
    assert text.startswith('<tools>{"type": "function", "function": {"name": "look", "description": "Looks at')
    assert "[assistant] Let me see.<tool_call>look sea</tool_call>" in text
    assert text.endswith("[tool] water")


def test_a_plain_template_is_told_in_the_system_message() -> None:
    told = preface([TOOL], must_call=False)
    assert '{"name":"look","description":"Looks at something.","parameters":{' in told
    assert "<tool_call>\n" in told
    text = rendered(PLAIN, TALK, TOOL)
    assert text.startswith(f"[system] {told}\n[user] What is there?\n")
    assert f"[assistant] Let me see.\n{called('look', {'at': 'sea'})}\n" in text
    assert text.endswith("[user] <tool_response>\nwater\n</tool_response>\n")


def test_the_preface_follows_what_the_system_message_says() -> None:
    talk = [{"role": "system", "content": "Be brief."}, *TALK[:1]]
    told = preface([TOOL], must_call=True)
    assert told.endswith("Answer this request with a call.")
    assert rendered(PLAIN, talk, TOOL, must_call=True).startswith(f"[system] Be brief.\n\n{told}\n[user]")


def test_results_without_tools_are_shown_all_the_same() -> None:
    text = rendered(PLAIN, TALK)
    assert text.startswith("[user] What is there?")
    assert "<tool_response>" in text


def test_a_template_with_another_form_of_calls_is_not_given_the_tools() -> None:
    for other in (
        "{% if tools %}native{% endif %}" + PLAIN,
        "{% if tools %}<tool_call><function=name> arguments{% endif %}" + PLAIN,
    ):
        assert "native" not in rendered(other, TALK, TOOL)
        assert rendered(other, TALK, TOOL) == rendered(PLAIN, TALK, TOOL)
