"""Chat templates: real ones render as transformers renders them, hostile ones execute nothing and end in time."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from qlangchain.artifacts import template as module
from qlangchain.artifacts.template import TemplateLimits, render
from qlangchain.demo.tokenizer import CHAT_TEMPLATE
from qlangchain.errors import InvalidInputError, QlangchainError, UnsafeSourceError, UnsupportedModelError

MESSAGES = [
    {"role": "system", "content": "Be brief. <&>"},
    {"role": "user", "content": "What is 量化? 🙂"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "bits", "arguments": {"format": "Q4"}}}]},
    {"role": "tool", "name": "bits", "content": "4.5"},
]
TOOLS = [{"type": "function", "function": {"name": "bits", "description": "Bits", "parameters": {"type": "object"}}}]

LLAMA_STYLE = """{{- bos_token }}{%- set ns = namespace(seen=false) %}
{%- for message in messages %}
    {%- if loop.first and message['role'] == 'system' %}{% set ns.seen = true %}{% endif %}
    {{- '<|start|>' + message['role'] + '\\n\\n' + (message['content'] | trim) + '<|eot|>' }}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}{{ call.function.arguments | tojson(indent=2) }}{% endfor %}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n\\n' }}{%- endif %}"""
MISTRAL_STYLE = """{%- for m in messages | rejectattr('role', 'equalto', 'system') %}
{%- if m.role == 'tool' %}{% continue %}{% endif %}
{%- macro show(text) %}[{{ text.split(' ')[0] | upper }}]{% endmacro %}
{{- show(m.content) }}{{ '%s-%d' % (m.role, loop.index0) }}{{ {'a': [1, 2.5, none, true]} | tojson }}
{%- if loop.index > 2 %}{% break %}{% endif %}
{%- endfor %}{% generation %}{{ messages | map(attribute='role') | join(',') }}{% endgeneration %}
{{- '{:>5}'.format('x') }}{{ (messages | length) // 3 }}{{ strftime_now('%%') }}"""


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA_STYLE, MISTRAL_STYLE])
@pytest.mark.parametrize("prompt", [False, True])
def test_the_text_is_that_of_transformers(template: str, prompt: bool) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected, _ = utils.render_jinja_template(
        conversations=[MESSAGES], tools=TOOLS, chat_template=template, add_generation_prompt=prompt, bos_token="<s>"
    )
    assert render(template, MESSAGES, TOOLS, add_generation_prompt=prompt, bos_token="<s>") == expected[0]


def test_what_a_template_says_about_the_messages() -> None:
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}ok"
    assert render(template, [{"role": "user"}]) == "ok"
    with pytest.raises(InvalidInputError, match="roles must alternate"):
        render(template, [{"role": "tool"}])


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ messages.a.b }}", "{{ 1 / 0 }}", "{% include 'x' %}", "{{ f() }}"]
)
def test_a_template_with_a_mistake(template: str) -> None:
    with pytest.raises(UnsupportedModelError):
        render(template, [])
    with pytest.raises(UnsupportedModelError, match="more than a template has"):
        render("x" * ((1 << 20) + 1), [])


def test_messages_that_are_no_json() -> None:
    with pytest.raises(InvalidInputError):
        render("{{ messages }}", [{"content": object()}])
    assert render("{{ messages[0].content }}", ({"content": ("a", "b")},)) == "['a', 'b']"


# Ways out of a template that are known from advisories (CVE-2016-10745, CVE-2019-10906, CVE-2024-34359,
# CVE-2024-56201, CVE-2024-56326, CVE-2025-27516) and from collections of payloads. DO stands for code that would leave
# a mark where it is executed.
CORPUS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'].__base__.__subclasses__()[100].__init__.__globals__['sys'] }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ''|attr('__cla' ~ 'ss__') }}",
    "{{ ''|attr(['_', '_', 'class', '_', '_']|join) }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('DO') }}",
    "{{ self._TemplateReference__context.environment.globals }}",
    "{{ cycler.__init__.__globals__.os.popen('DO').read() }}",
    "{{ joiner.__init__.__globals__.os.system('DO') }}",
    "{{ namespace.__init__.__globals__.os.system('DO') }}",
    "{{ lipsum.__globals__['os'].system('DO') }}",
    "{{ lipsum.__globals__.__builtins__.exec('DO') }}",
    "{{ range.__class__.__base__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['sys'].modules['os'].system('DO') }}",
    "{{ strftime_now.__globals__['sys'].modules['os'].system('DO') }}",
    "{{ strftime_now.__code__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(cycler) }}",
    "{{ ['{0.__class__}'.format]|map('call')|list }}{{ ''.format.__self__.__class__ }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
    "{{ ('%s'|attr('format')).__func__ }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c.__name__ }}{% endfor %}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__class__.__init__.__globals__ }}",
    "{{ loop.__class__ }}{% for x in [1] %}{{ loop._iterator.__class__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "{{ (x for x in [1]).gi_code }}",
    "{{ messages.append({'role': 'x'}) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].__setitem__('role', 'x') }}",
    "{% set messages[0].role = 'x' %}",
    "{% set namespace.__init__ = 1 %}",
    "{{ ''.join.__self__.__class__.__mro__ }}",
    "{{ [].sort.__self__.__class__ }}",
    "{{ messages|groupby('__class__') }}",
    "{{ messages|map(attribute='__class__.__mro__')|list }}",
    "{{ messages|sum(attribute='__class__') }}",
    "{{ messages|sort(attribute='__init__.__globals__') }}",
    "{{ ''.encode().__class__.__mro__[1].__subclasses__() }}",
    "{{ g.pop.__globals__ }}{{ request.application.__globals__ }}{{ config.items() }}",
    "{{ __builtins__ }}{{ __import__('os') }}{{ open('MARK', 'w') }}{{ eval('DO') }}{{ exec('DO') }}",
    "{% import 'os' as os %}{{ os.system('DO') }}",
    "{% from 'os' import system %}{{ system('DO') }}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% debug %}",
    "{{ environment }}{{ self.environment }}{{ context.eval_ctx }}",
    "{{ ''.__doc__ }}{{ 1 .real.__class__ }}{{ none.__class__ }}{{ true.__class__.__base__ }}",
]


@pytest.mark.parametrize("template", CORPUS)
def test_nothing_is_executed(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hostile = template.replace("MARK", str(mark)).replace("DO", f"touch {mark}")
    messages = [{"role": "user", "content": "x"}]
    try:
        text = render(hostile, messages)
    except QlangchainError as error:
        text = str(error)
    for word in ("<class", "<function", "<built-in", "<frame", "<module", "root:", "hf_secret", "jinja2.", "builtins"):
        assert word not in text
    assert not mark.exists()
    assert messages == [{"role": "user", "content": "x"}]
    assert render("ok", []) == "ok"


def test_a_process_that_got_out_could_do_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("QLANGCHAIN_ENDPOINT_KEY", "sk_secret")
    assert not {"HF_TOKEN", "QLANGCHAIN_ENDPOINT_KEY", "HOME"} & set(module._environment())
    render("ok", [])
    process = next(r._process for (pid, _), r in module._renderers.items() if pid == os.getpid() and r._process)
    limits = Path(f"/proc/{process.pid}/limits")
    if limits.exists():
        assert "Max file size             0                    0" in limits.read_text()
        assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


QUICK = TemplateLimits(cpu_seconds=0.3, wall_seconds=20.0, memory_bytes=256 << 20, output_bytes=1 << 20)
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ range(10**9)|list }}",
    "{{ 'a' * 10**10 }}",
    "{{ 'a' * 10**8 }}",
    "{{ ('a' * 1000) * 1000 * 1000 }}",
    "{{ [[0] * 10**6] * 10**6 | string }}",
    "{{ 9 ** (10 ** 9) }}",
    "{{ (10 ** 9) ** (10 ** 8) }}",
    "{{ 1 << 10 ** 12 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}",
    "{{ ('a' * 100000)|list|join('b' * 100000) }}",
    "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% set ns = namespace(x='a') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "{{ (['a'] * 10**6)|map('list')|map('join')|list|tojson|tojson|tojson|length * 10**9 }}" + "{{ '1' * 10**9 }}",
    "{{ messages|batch(10**9, 'x')|list }}",
    "{{ ('a b ' * 10**6)|wordwrap(1)|urlize|title|striptags }}{{ 'a' * 10**9 }}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
]


@pytest.mark.parametrize("template", ENDLESS)
def test_what_would_never_end_is_ended(template: str) -> None:
    began = time.monotonic()
    with pytest.raises((UnsafeSourceError, UnsupportedModelError)):
        render(template, [{"role": "user", "content": "x"}], limits=QUICK)
    assert time.monotonic() - began < QUICK.wall_seconds
    assert render("still {{ messages[0] }}", ["here"], limits=QUICK) == "still here"  # type: ignore[list-item]


def test_a_process_that_does_not_answer() -> None:
    limits = TemplateLimits(cpu_seconds=30.0, wall_seconds=0.5)
    with pytest.raises(UnsafeSourceError, match=r"no answer in 0\.5 s"):
        render(ENDLESS[0], [], limits=limits)
    assert render("ok", []) == "ok"


def test_many_threads_at_once() -> None:
    results: list[str] = []

    def work(number: int) -> None:
        results.extend(render("{{ messages[0].n }}", [{"n": number}]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(str(number) for number in range(8) for _ in range(20))


def test_a_fork_has_a_process_of_its_own() -> None:
    assert render("ok", []) == "ok"
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        said = b"?"
        try:
            said = render("forked", []).encode()
            module._stop_all()
        finally:
            os.write(writable, said)
            os._exit(0)
    os.close(writable)
    os.waitpid(child, 0)
    with os.fdopen(readable, "rb") as pipe:
        assert pipe.read() == b"forked"
    assert render("still ok", []) == "still ok"


def test_a_broken_pipe_is_noticed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    render("ok", [])
    for (pid, _), renderer in module._renderers.items():
        if pid == os.getpid() and renderer._process:
            renderer._process.kill()
            renderer._process.wait()
    assert render("ok", []) == "ok"
