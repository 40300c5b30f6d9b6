"""Templates that ask for more memory or time than there is: refused before it is taken, in a process of their own.

The process may not grow by more than twice a render's allowance (256 MiB), and has a hard limit below what most of the
templates ask for.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from router.prompt.sandbox import OverBounds
from router.prompt.template import ChatTemplate, TemplateError

GROWTH_MIB = 512
SECONDS = 4.0  # of CPU: a render's two, and one operation that is under way when they are over

BIG = "{% set s = 'x' * 8000000 %}"
ONE_OPERATION = [
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ [1] * 10**9 }}",
    "{{ (1, 2) * 10**9 }}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.rjust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{{ 'x'['center'](10**9) }}",
    "{{ ('x'|attr('center'))(10**9) }}",
    "{{ ('x'|safe).center(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%(a)1000000000s' % {'a': 1} }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%1000000000d' is divisibleby 1 }}",
    "{{ '%1000000000d' is odd }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{:.{w}f}'.format(1, w=10**9) }}",
    "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "{{ [1, [2]]|tojson(indent=10**9) }}",
    "{{ [1, 2]|tojson(indent='x' * 10000000, separators=('y' * 10000000, 'z')) }}",
    "{{ 10**(10**8) }}",
    "{{ 9**(9**9) }}",
    "{{ 9**999 * 9**999 }}",
    "{{ 5|round(-10**9) }}",
    "{{ 'x'|round(9, 'floor') }}",
    "{{ range(10**9)|list }}",
    "{{ 'x'|center(10**9) }}",
    "{{ 'x'|center(width=1000000000) }}",
    "{{ ['x', 'y']|map('center', 1000000000)|list }}",
    "{{ 'x\\ny'|indent(10**9) }}",
    "{{ 'x\\ny'|indent('z' * 16000000 ~ 'z' * 16000000) }}",
    "{{ [1]|batch(10**9, 0)|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ lipsum(10**7) }}",
    "{{ (1).to_bytes(10**9) }}",
    "{{ 'x'.encode().ljust(10**9) }}",
    "{{ 'xx'.translate({120: 'y' * 10000000}) }}",
    "{{ strftime_now('%Y' * 10000000) }}",
    "{{ ('7' * 1000000)|int }}",
    "{{ ('f' * 8000000)|int(base=16) // 7 }}",
]
GROWTH = [
    BIG + "{{ s.replace('x', s) }}",
    BIG + "{{ s|replace('x', s) }}",
    BIG + "{{ s|replace('', 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy') }}",
    BIG + "{{ s.join(s) }}",
    BIG + "{{ range(1000)|join(s) }}",
    BIG + "{{ [s] * 100|list|length }}{{ ([s] * 100)|join }}",
    BIG + "{{ ('x ' * 8000000).split()|length }}",
    BIG + "{{ ('x\\n' * 8000000).splitlines()|length }}",
    BIG + "{{ ('x ' * 8000000)|title }}",
    BIG + "{{ s|list|length }}",
    BIG + "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [s[i:]] %}{% endfor %}",
    BIG + "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [s|upper] %}{% endfor %}",
    BIG + "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [s.lower()] %}{% endfor %}",
    BIG + "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [s ~ i] %}{% endfor %}",
    BIG + "{% macro f() %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endmacro %}{{ f()|length }}",
    BIG + "{% set t %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}{{ t|length }}",
    BIG + "{% macro f(t) %}{{ f(t[1:]) }}{% endmacro %}{{ f(s) }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(s, n) %}{% if n %}{{ f(s + s, n - 1) }}{% endif %}{% endmacro %}{{ f('xx', 60) }}",
    "{% macro f(s, n) %}{% if n %}{{ f(s ~ s, n - 1) }}{% endif %}{% endmacro %}{{ f('xx', 60) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% else %}x{% endif %}{% endmacro %}{{ f(40) }}",
    "{% macro f(r) %}{% for i in r %}{% for j in r %}x{% endfor %}{% endfor %}{% endmacro %}{{ f(range(99999)) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
]
NEST = (
    "{% set n = namespace(a=[1], b=[1]) %}"
    "{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
)
SHARED_PARTS = [
    NEST + "{{ n.a }}",
    NEST + "{{ n }}",
    NEST + "{{ n.a|tojson }}",
    NEST + "{{ n.a|string }}",
    NEST + "{{ n.a|upper }}",
    NEST + "{{ n.a ~ 'x' }}",
    NEST + "{{ '%s' % [n.a] }}",
    NEST + "{{ '{}'.format(n.a) }}",
    NEST + "{{ {'a': n.a}.items() }}",
    NEST + "{{ n.a|join(', ') }}",
    NEST + "{{ n.a == n.b }}",
    NEST + "{{ n.a in [n.b] }}",
    NEST + "{{ n.a is eq(n.b) }}",
    NEST + "{{ [n.a]|select('eq', n.b)|list }}",
    NEST + "{{ [n.a, n.b]|sort }}",
    NEST + "{{ [n.a, n.b]|max }}",
    NEST.replace("[n.a, n.a]", "(n.a, n.a)") + "{{ {}[n.a] }}",
]

CHILD = """
import json, resource, sys, time
from router.prompt.template import ChatTemplate, TemplateError
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
ChatTemplate("{{ 1 }}").render([])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
for source in json.load(sys.stdin):
    started, error = time.process_time(), None
    try:
        ChatTemplate(source).render([{"role": "user", "content": "hello"}])
    except TemplateError as raised:
        error = str(raised)
    print(json.dumps([source, error, time.process_time() - started, peak() - before]), flush=True)
"""


@pytest.mark.parametrize("sources", [ONE_OPERATION, GROWTH, SHARED_PARTS], ids=["one operation", "growth", "shared"])
def test_memory_and_time_are_bounded(sources: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(sources), capture_output=True, text=True, timeout=300
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(sources), (done.returncode, done.stderr[-500:], told[-1:])
    for source, error, seconds, grown in told:
        assert error is not None, f"{source} was rendered"
        assert "MemoryError" not in error, source
        assert grown < GROWTH_MIB, f"{source}: {grown} MiB: {error}"
        assert seconds < SECONDS, f"{source}: {seconds:.1f} s: {error}"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{{ 'x'.center(10**9) }}", "center may make 1000000000 characters"),
        ("{{ '%1000000000d' % 1 }}", "text % values may make"),
        ("{{ 9**(9**9) }}", "a power that is too large"),
        ("{{ [1]|tojson(indent=10**9) }}", "tojson may make"),
        ("{{ 'x'.encode() }}", "calls 'encode' of a text"),
        ("{{ 'x'|urlize }}", "the filter 'urlize'"),
        (
            "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "text may make",
        ),
    ],
)
def test_the_error_says_what_was_asked_for(source: str, part: str, caplog: pytest.LogCaptureFixture) -> None:
    template = ChatTemplate(source, name="bomb")
    for _ in range(2):
        with pytest.raises(OverBounds, match=re.escape(part)):
            template.render([])
    (record,) = caplog.records  # once, not for each request
    assert "bomb" in record.getMessage() and part in record.getMessage()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'ab'.center(6) }}|{{ 'x'.zfill(3) }}|{{ 'a\tb'.expandtabs(4) }}", "  ab  |00x|a   b"),
        ("{{ '%05.1f|%s' % (1.25, 'x') }}|{{ '{:>4}|{!r}'.format(1, 'x') }}", "001.2|x|   1|'x'"),
        ("{{ 'a b'.split() }}{{ 'a,b'.rsplit(',', 1) }}{{ 'a\nb'.splitlines() }}", "['a', 'b']['a', 'b']['a', 'b']"),
        ("{{ ', '.join(['a', 'b']) }}{{ [1, 'b']|join('-') }}{{ [{'a': 1}]|join(attribute='a') }}", "a, b1-b1"),
        ("{{ {'a': [1]}|tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ '<' + ('a>'|safe) + '<' }}", "&lt;a>&lt;"),
        ("{{ 1 + 2 + 3 }}{{ [1] + [2] }}{{ (1,) + (2,) }}{{ 'a' + 'b' * 2 }}{{ 2**10 }}", "6[1, 2](1, 2)abb1024"),
        ("{{ 'a' ~ 1 ~ [2] }}{{ [3, 1]|sort }}{{ (1, [2]) == (1, [2]) }}{{ [1] in [[1]] }}", "a1[2][1, 3]TrueTrue"),
        ("{{ {'a': 1}.items()|list }}{{ {'a': 1}.get('b', 2) }}{{ [1, 2].index(2) }}", "[('a', 1)]21"),
        ("{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "3210"),
        ("{% for i in [[1, [2]]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}", "12"),
        ("{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{% if i == 1 %}{% break %}{% endif %}{% endfor %}", "ab"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() ~ c.next() }}{% set j = joiner(',') %}{{ j() ~ j() }}", "ab,"),
        ("{{ [1, 2, 3]|batch(2, 0)|list }}{{ [1, 2]|slice(2)|list }}", "[[1, 2], [3, 0]][[1], [2]]"),
        ("{{ [1, 2]|sum }}{{ 2.5|round }}{{ '12'|int }}", "32.012"),
        ("{{ 'a\nb'|indent(2) }}{{ 'ab'|center(4) }}{{ 'ab'|replace('b', 'c') }}{{ '%d'|format(3) }}", "a\n  b ab ac3"),
    ],
)  # fmt: skip
def test_what_is_allowed_gives_jinjas_text(source: str, text: str) -> None:
    assert ChatTemplate(source).render([]) == text


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "x" * (1 << 21), "{% autoescape true %}x{% endautoescape %}"],
)
def test_what_does_not_compile(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source)
