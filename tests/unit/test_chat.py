from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hetrun.errors import ChatTemplateError
from hetrun.model.chat import ChatTemplate
from hetrun.model.tokenizer import Tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Say <b>"h\u00e9"</b>\n\n now'},
    {"role": "assistant", "content": "Yes."},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "int"}, "b": [1, None, True]}}}]
CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' + '\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>"],
    "tokenizer.ggml.token_type": [3, 3],
    "tokenizer.ggml.merges": [],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}


def render(source: str, **variables: Any) -> str:
    return ChatTemplate({"default": source}, bos_token="<s>", eos_token="</s>").render(MESSAGES, **variables)


def refusal(source: str) -> str:
    with pytest.raises(ChatTemplateError) as caught:
        render(source)
    assert "\n" not in str(caught.value)
    return caught.value.message


def from_metadata(**templates: Any) -> ChatTemplate | None:
    keys = {f"tokenizer.{name.replace('__', '.')}": value for name, value in templates.items()}
    return ChatTemplate.from_metadata(METADATA | keys, Tokenizer.from_metadata(METADATA))


def plain_jinja2(source: str, **variables: Any) -> str:
    """As transformers renders chat templates: no limits, nothing rewritten."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment.from_string(source).render(**variables)


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m | tojson }}{% endfor %}",
        "{% for m in messages %}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content|trim }}{% endfor %}",
        "{% set ns = namespace(n=0, text='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.text = ns.text ~ m.role ~ ns.n %}{% endfor %}{{ ns.text }}",
        "{% macro show(m, sep=': ') %}{{ m.role }}{{ sep }}{{ m.content }}{% endmacro %}{{ show(messages[0], '=') }}",
        "{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}x{% endcall %}",
        "{% set loop_messages = messages[1:] %}{{ loop_messages | map(attribute='role') | join(', ') }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') | upper }}",
        "{% for a, b in {'x': 1, 'y': [2]}.items() %}{{ a }}={{ b }};{% endfor %}{{ {'a': (1, 2)} }}",
        "{{ tools | tojson(indent=2) }}{{ tools is defined and tools is not none }}{{ 'f' in tools[0].function.name }}",
        "{% set x %}a{{ 1 + 2 * 3 // 2 }}{% endset %}{{ x.strip().split('a')[-1] }}{{ 'a,b'.replace(',', ';') }}",
        "{{ '%s-%03d' % ('a', 7) }}{{ '{} {x:>5}'.format(1, x='b') }}{{ 'x'|center(5) }}{{ 'a\nb'|indent(2) }}",
        "{{ messages | groupby('role') | list | length }}{{ [3, 1, 2] | sort | sum }}{{ [1, 2, 3] | slice(2) | list }}",
        "{{ undefined_name }}{{ messages[0].nothing is defined }}{{ none }}{{ 1 if true else 2 }}{{ 1 < 2 <= 2 }}",
        "{%- for item in [1, [2, [3]]] recursive %}{{ item if item is number else loop(item) }}{% endfor %}",
        "{{ range(3) | list }}{{ [1, 2] + [3] }}{{ 'ab' * 3 }}{{ messages[-1]['role'][::-1] }}{{ 7 % 4 }}{{ 2 ** 10 }}",
    ],
)
def test_output_equals_plain_jinja2(source: str) -> None:
    variables: dict[str, Any] = {"tools": TOOLS, "add_generation_prompt": True, "none_given": None}
    expected = plain_jinja2(source, messages=MESSAGES, bos_token="<s>", eos_token="</s>", **variables)
    assert render(source, **variables) == expected


def test_generation_prompt_can_be_left_out() -> None:
    assert render(CHATML).endswith("<|im_start|>assistant\n")
    assert render(CHATML, add_generation_prompt=False).endswith("Yes.<|im_end|>\n")


def test_generation_block_is_its_contents() -> None:
    assert render("{% generation %}{{ bos_token }}{% endgeneration %}") == "<s>"


def test_date_is_that_of_today() -> None:
    assert render("{{ strftime_now('%Y') }}").isdigit()


def test_file_without_template_gives_none() -> None:
    assert from_metadata() is None


def test_special_tokens_come_from_the_tokenizer() -> None:
    template = from_metadata(chat_template="{{ bos_token }}{{ eos_token }}")
    assert template is not None and template.render(MESSAGES) == "<s></s>"


def test_variant_for_tools_is_taken_when_there_are_tools() -> None:
    template = from_metadata(chat_template="plain", chat_template__tool_use="tools")
    assert template is not None and template.names == ("default", "tool_use")
    assert (template.render(MESSAGES), template.render(MESSAGES, tools=TOOLS)) == ("plain", "tools")


def test_template_that_is_no_string_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match=r"tokenizer\.chat_template is no string"):
        from_metadata(chat_template=3)


def test_template_for_tools_alone_is_refused_without_tools() -> None:
    template = from_metadata(chat_template__tool_use="tools")
    assert template is not None
    with pytest.raises(ChatTemplateError, match="no default chat template"):
        template.render(MESSAGES)


# Failures


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("{{ raise_exception('no\nsystem role') }}", "no system role"),
        ("\n\n{% for %}", "line 3: Expected an expression"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a'() }}", "not callable"),
        ("{{ 1 | no_such_filter }}", "no_such_filter"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(role='x') }}", "unsafe"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "too deeply"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deeply"),
    ],
    ids=range(12),
)
def test_failure_is_one_line(source: str, cause: str) -> None:
    assert cause in refusal(source)


# Limits, as someone would try them who means harm

NEST = "{% set ns = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}" + (
    "{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
)
GROW = "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
BOMBS = {
    "silent-loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros-that-double": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive-loop": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
    "plain-output": "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaa{% endfor %}",
    "string-times": "{{ 'a' * 10**9 }}",
    "times-string": "{{ 10**9 * 'a' }}",
    "list-times": "{{ ([0] * 10**9) | length }}",
    "power": "{{ 9**(9**9) }}",
    "squares": GROW.format(start="3", step="ns.x * ns.x"),
    "concatenation": GROW.format(start="'a'", step="ns.x ~ ns.x"),
    "addition": GROW.format(start="'a'", step="ns.x + ns.x"),
    "list-addition": GROW.format(start="[1]", step="ns.x + ns.x"),
    "set-block": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "slices": "{% set ns = namespace(x=1) %}{% set s = 'a' * 1000000 %}"
    "{% for i in range(99999) %}{% set ns.x = {'a': ns.x, 'b': s[1:]} %}{% endfor %}",
    "literals": GROW.replace("60", "99999").format(start="1", step="(ns.x, [" + "0," * 15000 + "])"),
    "buffers": "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}"
    + "{% if 1 %}x{% endif %}" * 2000
    + "{% endfor %}{% endfor %}{% endset %}",
    "nested-print": NEST + "{{ ns.x }}",
    "nested-equal": NEST + "{{ ns.x == ns.y }}",
    "nested-in": NEST + "{{ ns.x in {'a': ns.y}.values() }}",
    "nested-sort": NEST + "{{ [ns.x, ns.y] | map('default') | sort }}",
    "nested-key": NEST + "{{ {ns.x: 1} }}",
    "nested-item": NEST + "{{ {}[ns.x] }}",
    "nested-json": NEST + "{{ ns.x | tojson }}",
    "nested-format": NEST + "{{ '%s' % (ns.x,) }}",
    "nested-call": NEST + "{{ 'a'.join(ns.x) }}",
    "namespace-in-itself": "{% set ns = namespace(x=1) %}{% set ns.x = [ns, ns] %}{{ ns }}",
    "center": "{{ 'a' | center(10**9) }}",
    "filter-block": "{% filter center(10**9) %}a{% endfilter %}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "bytes-ljust": "{{ 'a'.encode().ljust(10**9) | length }}",
    "to-bytes": "{{ (5).to_bytes(10**9, 'big') | length }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "percent-format": "{{ '%1000000000d' % 1 }}",
    "percent-star": "{{ '%*d' % (10**9, 1) }}",
    "percent-many": "{{ ('%999999d' * 1000) % ((1,) * 1000) }}",
    "format-filter": "{{ '%1000000000d' | format(1) }}",
    "format-method": "{{ '{:>1000000000}'.format(1) }}",
    "format-nested": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format-map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "join": "{{ range(99999) | join('a' * 100000) }}",
    "join-method": "{{ ('a' * 100000).join([''] * 99999) }}",
    "join-generator": "{{ ('a' * 100000).join(range(99999) | map('string')) }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace-method": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "indent": "{{ ('\n' * 100000) | indent(9999, blank=true) }}",
    "slice": "{{ 'a' | slice(10**9) | list }}",
    "batch": "{{ 'a' | batch(10**9, 'x') | list }}",
    "round": "{{ 1 | round(10**9, 'floor') }}",
    "sum-of-lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "json-indent": "{{ messages | tojson(indent=10**9) }}",
    "time-format": "{{ strftime_now('%c' * 1000) }}",
    "long-template": "{{ a }}" * 30000,
    "many-parts": "{{a}}" * 20000,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_bomb_is_stopped(source: str) -> None:
    assert refusal(source).startswith("chat template stopped: ")


def test_bombs_are_stopped_in_bounded_memory() -> None:
    code = """
import json, sys
from hetrun.errors import ChatTemplateError
from hetrun.model.chat import ChatTemplate
for source in json.load(sys.stdin):
    try:
        ChatTemplate({"default": source}, time_limit_s=0.5).render([])
    except ChatTemplateError:
        pass
# Not getrusage: its figure begins with that of the process that started this one.
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    bombs = json.dumps(list(BOMBS.values()))
    run = subprocess.run([sys.executable, "-c", code], input=bombs, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400  # MiB: 64 Mi characters of up to 4 bytes, and Python itself


@pytest.mark.timeout(20)
def test_time_limit_holds_outside_the_main_thread() -> None:
    messages: list[str] = []

    def work() -> None:
        template = ChatTemplate({"default": BOMBS["macros-that-double"]}, time_limit_s=0.2)
        with pytest.raises(ChatTemplateError) as caught:
            template.render(MESSAGES)
        messages.append(caught.value.message)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert messages == ["chat template stopped: it ran longer than 0.2 s"] * 3


def test_output_limit_counts_bytes() -> None:
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, output_limit_bytes=8)
    assert template.render([{"role": "user", "content": "\u20ac\u20ac"}]) == "\u20ac\u20ac"
    with pytest.raises(ChatTemplateError, match="its output exceeds 8 bytes"):
        template.render([{"role": "user", "content": "\u20ac\u20ac\u20ac"}])


def test_long_conversation_is_within_the_limits() -> None:
    turns = [{"role": role, "content": "word " * 50} for role in ("user", "assistant")] * 1000
    template = ChatTemplate({"default": CHATML})
    assert len(template.render(turns)) > 500_000


def test_template_survives_a_failed_rendering() -> None:
    template = ChatTemplate({"default": "{{ 'a' * n }}"})
    with pytest.raises(ChatTemplateError):
        template.render(MESSAGES, n=10**9)
    assert template.render(MESSAGES, n=2) == "aa"


# Tools come from files of the user, and go through the same template


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("source", "tools", "cause"),
    [
        ("{% for t in tools %}{% for i in range(99999) %}{% for j in range(99) %}{% endfor %}{% endfor %}{% endfor %}",
         TOOLS, "ran longer"),
        ("{% set ns = namespace(x=tools) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
         TOOLS, "too large"),
        ("{{ (tools | tojson) * 10**6 }}", TOOLS, "string longer than"),
        ("{% for i in range(99999) %}{{ tools | tojson }}{% endfor %}", TOOLS, "exceeds|more than|longer than"),
        ("{{ tools | tojson }}", [{"name": "x" * (1 << 24)}], "too large|longer"),
        ("{{ tools | tojson }}", [nested(5000)], "too deeply"),
        ("{{ tools }}", [nested(5000)], "too deeply"),
        ("{{ tools.append(1) }}", TOOLS, "unsafe"),
        ("{{ tools[0].update(x=1) }}", TOOLS, "unsafe"),
        ("{% if tools %}{{ raise_exception('no tools\nhere') }}{% endif %}", TOOLS, "no tools here"),
        ("{{ tools[3].name }}", TOOLS, "failed"),
    ],
    ids=[
        "loop", "doubling", "times", "output", "long", "deep-json", "deep-print", "append", "update", "raise", "none",
    ],
)  # fmt: skip
def test_template_that_fails_over_tools_is_one_line(source: str, tools: list[Any], cause: str) -> None:
    template = ChatTemplate({"default": "plain", "tool_use": source}, time_limit_s=0.5)
    before = json.dumps(TOOLS)
    with pytest.raises(ChatTemplateError, match=cause) as caught:
        template.render(MESSAGES, tools=tools)
    assert "\n" not in caught.value.message
    assert json.dumps(TOOLS) == before
    assert template.render(MESSAGES) == "plain"
