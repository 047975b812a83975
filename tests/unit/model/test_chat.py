"""Chat templates: the same text as transformers renders, and nothing else."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from jitmk.errors import GenerationError, TokenizerError
from jitmk.model import template_sandbox
from jitmk.model.chat import ChatTemplate, read_chat_template

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

HEADERS = """{{- bos_token }}
{%- if tools is not none %}{{ '[tools] ' ~ (tools | tojson(indent=2)) }}{% endif %}
{%- set ns = namespace(count=0) %}
{%- for message in messages %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}"""

ALTERNATING = """{% if messages[0]['role'] == 'system' %}
  {% set system_message = messages[0]['content'] %}
  {% set loop_messages = messages[1:] %}
{% else %}
  {% set loop_messages = messages %}
{% endif %}
{% for message in loop_messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('roles must alternate') }}
  {% endif %}
  {% if loop.index0 == 0 and system_message is defined %}
    {% set content = '<<' ~ system_message ~ '>> ' ~ message['content'] %}
  {% else %}
    {% set content = message.content %}
  {% endif %}
  {% if message['role'] == 'user' %}
{{ bos_token + '[I] ' + content.strip() + ' [/I]' }}
  {% else %}
{% generation %}{{ content | trim }}{{ eos_token }}{% endgeneration %}
  {% endif %}
{% endfor %}"""

FEATURES = """{% macro show(x, deep=false) %}({{ x | upper }}{% if deep %}!{{ caller() }}{% endif %}){% endmacro %}
{% for message in messages %}{% if loop.last %}{% break %}{% endif %}{{ show(message.content) }};{% endfor %}
{% for key, value in messages[0].items() | sort %}{{ key }}={{ value | tojson }} {% endfor %}
{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{{ loop.length }}{{ loop.revindex }}{% endfor %}
{% for x in [] %}{% else %}empty{% endfor %}{{ '%s-%d' | format('a', 3) }}{{ '{}/{:>4}'.format('b', 7) }}
{{ messages | map(attribute='role') | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ {'b': 1, 'a': [1, 2.5, none, true], 'ü': '<&>'} | tojson }} {{ undefined_thing }}{{ none }}{{ 3 * 'ab' }}{{ 2 ** 5 }}
{{ 'x,y'.split(',') | last }}{{ messages[0].content[::-1] }}{{ 'a' if true }}{{ dict(a=1).a }}{{ 7 // 2 }}{{ 7 % 4 }}
{% call show('q', true) %}inner{% endcall %}{% filter lower %}LOUD{% endfilter %}{{ 'a\\nb' | indent(2) }}
{%- set joined %}{{ messages[0].role }}-{{ 1.5 }}{% endset %}{{ joined | length }}{{ "q" ~ 1 ~ none ~ [1] }}"""

CHATS = [
    [{"role": "user", "content": "  Hello <b>& goodbye</b> 😀 "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?\nTwo?"},
        {"role": "assistant", "content": " Yes. "},
        {"role": "user", "content": "Why?"},
    ],
]


def theirs(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    """What transformers renders."""
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=Tokenizer(WordLevel({"<s>": 0, "</s>": 1}, "<s>")), **SPECIAL)
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    assert isinstance(text, str)
    return text


def ours(template: str, messages: Any = None, **options: Any) -> str:
    return ChatTemplate({"default": template}, SPECIAL).render(messages or CHATS[0], **options)


@pytest.mark.parametrize("template", [HEADERS, ALTERNATING, FEATURES])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_the_text_is_that_of_transformers(template: str, messages: list[dict[str, Any]], prompt: bool) -> None:
    expected = theirs(template, messages, add_generation_prompt=prompt)
    assert ours(template, messages, add_generation_prompt=prompt) == expected
    assert len(expected) > 30


def test_tools_documents_and_variables_reach_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert ours(HEADERS, CHATS[0], tools=tools) == theirs(HEADERS, CHATS[0], tools=tools, add_generation_prompt=True)
    template = "{{ documents[0].text }}{{ enable_thinking }}{{ strftime_now('%Y') }}"
    text = ours(template, documents=[{"text": "doc"}], enable_thinking=False)
    assert re.fullmatch(r"docFalse\d{4}", text) and text.endswith(str(datetime.now().year))


def test_a_template_for_tools_is_taken_when_there_are_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert template.render(CHATS[0]) == "plain"
    assert template.render(CHATS[0], tools=[{"name": "f"}]) == "tools"
    with pytest.raises(TokenizerError, match="no default chat template, only rag"):
        ChatTemplate({"rag": "x"}, {}).render(CHATS[0])


def test_a_template_may_refuse() -> None:
    with pytest.raises(GenerationError, match="refuses these messages: unknown role tool"):
        ours(HEADERS, [{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    "messages",
    [
        "Hello",
        [],
        {"role": "user", "content": "x"},
        ["Hello"],
        [{"content": "x"}],
        [{"role": 3, "content": "x"}],
        [{"role": "user", "content": object()}],
        [{"role": "user", "content": b"bytes"}],
        [{"role": "user", "content": {1: 2}}],
    ],
)
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(GenerationError):
        ChatTemplate({"default": "x"}, {}).render(messages)


def test_cyclic_messages_are_refused() -> None:
    content: list[Any] = []
    content.append(content)
    with pytest.raises(GenerationError, match="nested too deeply"):
        ours("x", [{"role": "user", "content": content}])


def test_no_template_and_broken_templates_are_explained() -> None:
    with pytest.raises(TokenizerError, match="no chat template: pass the prompt as text"):
        ChatTemplate({}, {}).render(CHATS[0])
    with pytest.raises(TokenizerError, match="malformed in line 2"):
        ours("\n{% if %}")
    with pytest.raises(TokenizerError, match=r"failed with UndefinedError.*nope"):
        ours("{{ nope.really }}")
    with pytest.raises(TokenizerError, match="failed with ZeroDivisionError"):
        ours("{{ 1 // 0 }}")
    with pytest.raises(TokenizerError, match="failed with"):
        ours("{% include 'other' %}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{x.__class__}'.format_map({'x': ''}) }}",
        "{{ '%s'|attr('__class__') }}",
        "{{ (messages|map(attribute='__class__')|list)[0].mro() }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.__bases__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ messages.clear() }}",
        "{{ raise_exception.__wrapped__ }}",
        "{{ range.__class__ }}",
        "{{ messages|map('attr', '__class__')|list }}",
    ],
)
def test_hostile_templates_get_nowhere(template: str) -> None:
    messages = [{"role": "user", "content": "hello"}]
    try:
        text = ours(template, messages)
    except TokenizerError:
        return
    # What the sandbox hides is undefined, and prints as nothing.
    assert text.strip() in ("", "[]", "[Undefined]")
    assert messages == [{"role": "user", "content": "hello"}]


def repeated(start: str, step: str, after: str = "", before: str = "") -> str:
    """A template that applies `step` to `ns.x` fifty times."""
    loop = f"{before}{{% set ns.x = {step} %}}"
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(50) %}}{loop}{{% endfor %}}{after}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}spam{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(999) %}{% set x %}{{ i }}{% endset %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 9) }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10000000000 * 'a' }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 10 ** 1000000000 }}",
        repeated("3", "ns.x * ns.x"),
        repeated("'aa'", "ns.x + ns.x"),
        repeated("'aa'", "ns.x ~ ns.x"),
        repeated("[1]", "ns.x + ns.x"),
        repeated("'aa'", "[ns.x, ns.x] | join"),
        repeated("'aa'", "''.join([ns.x, ns.x])"),
        repeated("'aa'", "''.join([ns.x, ns.x] | map('string'))"),
        repeated("'aa'", "ns.x.replace('a', ns.x)"),
        repeated("'aa'", "ns.x | replace('a', ns.x)"),
        repeated("'aa'", "'%s%s' % (ns.x, ns.x)"),
        repeated("'aa'", "'{0}{0}'.format(ns.x)"),
        repeated("'aa'", "'%s%s' | format(ns.x, ns.x)"),
        repeated("'aa'", "range(999) | join(ns.x)"),
        repeated("'aa'", "ns.x | wordwrap(1, wrapstring=ns.x)"),
        repeated("'aa'", "ns.x.translate({97: ns.x})"),
        repeated("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
        repeated("1", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
        repeated("'aa'", "y", before="{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a' | center(99999999999) }}",
        "{{ 'a' | indent(99999999999, true) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '%*d' % (99999999999, 1) }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, '99999999999') }}",
        "{{ (['a' * 99999] * 30) | map('replace', 'a', 'aa') | join }}",
        "{{ strftime_now('%99999999999d') }}",
        "{{ lipsum(10 ** 9) }}",
        "{{ ('a' * 9999 * 99) * 9999 }}",
        "{{ ([['a' * 9999] * 9999] * 9999) | tojson }}",
    ],
)
def test_templates_that_never_end_are_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox.Meter.__init__, "__defaults__", (0, 0.2))
    begin = time.monotonic()
    with pytest.raises(TokenizerError, match=r"was stopped|failed with (Recursion|Overflow|Undefined)Error"):
        ours(template)
    # Not a measurement: without the bounds these run for hours, or out of memory.
    assert time.monotonic() - begin < 20


def test_long_chats_fit() -> None:
    messages = [{"role": "user", "content": "word " * 200_000}, {"role": "assistant", "content": "x"}] * 3
    assert len(ours(HEADERS, messages)) > 3_000_000


def test_templates_are_found_where_transformers_keeps_them(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path, {}) == {}
    assert read_chat_template(tmp_path, {"chat_template": "a"}) == {"default": "a"}
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert read_chat_template(tmp_path, {"chat_template": named}) == {"default": "a", "tool_use": "b"}
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "c"}))
    assert read_chat_template(tmp_path, {"chat_template": "a"}) == {"default": "c"}
    (tmp_path / "chat_template.jinja").write_text("d", encoding="utf-8")
    assert read_chat_template(tmp_path, {"chat_template": "a"}) == {"default": "d"}
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja cannot be read"):
        read_chat_template(tmp_path, {})


@pytest.mark.parametrize("wrong", [5, ["a"], [{"name": "x"}], [{"name": "x", "template": 3}]])
def test_a_malformed_entry_is_named(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(TokenizerError, match="chat_template must be a template"):
        read_chat_template(tmp_path, {"chat_template": wrong})
