"""Templates that a resumed render could get wrong."""

# ruff: noqa: E501  (templates)
from __future__ import annotations

# Each looks at a conversation in another way; the comment says what makes it hard.
HARD = {
    "last": "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if loop.last %}!{% else %};{% endif %}{% endfor %}",
    "length": "{% for m in messages %}{{ m.role[0] }}{{ loop.length }}/{{ loop.revindex }},{% endfor %}",
    "neighbours": (
        "{% for m in messages %}{% if loop.previtem is defined %}{{ loop.previtem.role }}{% endif %}<{{ m.role }}>"
        "{{ (loop.nextitem | default({'role': 'end'})).role }};{% endfor %}"
    ),
    "ahead": (
        "{% for m in messages %}{{ (messages[loop.index0 + 3] | default({'role': 'end'})).role }}{{ m.content }}|{% endfor %}"
    ),
    "end": "{% for m in messages %}{% if messages[-1].role == 'tool' %}T{% endif %}{{ m.content }}|{% endfor %}",
    "behind": "{% for m in messages %}{{ messages[loop.index0 - 1].role }}{{ m.content }}|{% endfor %}",
    "counter": (
        "{% set ns = namespace(n=0, last=none) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.n = ns.n + 1 %}{% set ns.last = loop.index0 %}{% endif %}{{ ns.n }}{{ m.content }},{% endfor %}"
        "{{ ns.n }} {{ ns.last }}"
    ),
    "scan": (
        "{% set ns = namespace(q=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.q = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}{% if loop.index0 > ns.q %}*{% endif %}{{ m.content }}"
        "{% endfor %}"
    ),
    "rest": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ system }}"
        "{% for m in rest %}{{ messages[loop.index0].role }}"
        "{{ (rest[loop.index0 + 1] | default({'role': 'end'})).role }}{{ m.content }}{% endfor %}"
    ),
    "backwards": "{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.content }}{% endfor %}",
    "macro": (
        "{% set ns = namespace(n=0) %}{% macro show(m, x='-') %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ x }}{{ m.content }}"
        "{% endmacro %}{% for m in messages %}{{ show(m) }}{{ show(m, m.role) }}{% endfor %}{{ ns.n }}"
    ),
    "macro reads the end": (
        "{% macro tail() %}{{ messages[-1].content }}{% endmacro %}{% for m in messages %}{{ tail() }},{% endfor %}"
    ),
    "changed": "{% for m in messages %}{% if loop.changed(m.role) %}{{ m.role }}{% endif %}{{ m.content }}{% endfor %}",
    "cycle": "{% for m in messages %}{{ loop.cycle('a', 'b', 'c') }}{{ m.content }}{% endfor %}",
    "break": "{% for m in messages %}{% if m.content == 'stop' %}{% break %}{% endif %}{{ m.content }},{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ m.content }},{% endfor %}",
    "condition": "{% for m in messages if m.role != 'tool' %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "else": "{% for m in messages %}{{ m.content }}{% else %}nothing{% endfor %}",
    "twice": "{% for m in messages %}{{ m.role }}{% endfor %}#{% for m in messages %}{{ m.content }}{% endfor %}",
    "all of it": "{% for m in messages %}{{ messages | length }}{{ (messages | last).role }}{{ m.content }};{% endfor %}",
    "a made list": (
        "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
        "{% for m in messages %}{% if m == users[-1] %}last:{% endif %}{{ m.content }}{% endfor %}"
    ),
    "tools": (
        "{% for t in tools %}{{ t | tojson }}{% if not loop.last %},{% endif %}{% endfor %}"
        "{% for m in messages %}{{ m.content }}{{ tools | length }}{% endfor %}"
    ),
    "variables": (
        "{% for m in messages %}{{ bos_token }}{{ m.content }}{{ mode }}{{ extra.x }}{% if mode is defined %}d{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    ),
    "shadow": (
        "{% set content = 'outer' %}{% for m in messages %}{{ content }}{% if m.role == 'user' %}"
        "{% set content = m.content %}{% endif %}{{ content }},{% endfor %}{{ content }}"
    ),
    "unset": "{% for m in messages %}{% if m.role == 'user' %}{% set mode = m.content %}{% endif %}{{ mode }},{% endfor %}",
    "nested": (
        "{% for m in messages %}{% for c in m.content %}{{ loop.index }}{{ c }}{% if loop.last %}.{% endif %}{% endfor %}"
        "{% set block %}{{ m.role }}{% for c in m.content %}{{ c }}{% endfor %}{% endset %}{{ block | upper }}{% endfor %}"
    ),
    "in a block": "{% set all %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ all | trim }}",
    "state in a list": (
        "{% set ns = namespace(seen=[]) %}{% for m in messages %}{% set ns.seen = ns.seen + [m.role] %}"
        "{{ ns.seen | join('') }}|{% endfor %}"
    ),
    "two spaces": (
        "{% set a = namespace(v=1) %}{% set b = namespace(other=a) %}{% for m in messages %}"
        "{% set a.v = a.v + 1 %}{{ b.other.v }}{{ m.content }}{% endfor %}"
    ),
    "raises": "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}",
    "call block": "{% macro w() %}[{{ caller() }}]{% endmacro %}{% for m in messages %}{% call w() %}{{ m.content }}{% endcall %}{% endfor %}",
    "last question": (
        "{% set ns = namespace(searching=true, last=messages|length - 1) %}{% for m in messages[::-1] %}"
        "{% set index = (messages|length - 1) - loop.index0 %}{% if ns.searching and m.role == 'user' and "
        "not m.content.startswith('b') %}{% set ns.searching = false %}{% set ns.last = index %}{% endif %}{% endfor %}"
        "{{ ns.searching }}{% for m in messages %}{% if m.role == 'assistant' and loop.index0 > ns.last %}*{% endif %}"
        "{{ m.content }};{% endfor %}"
    ),
    "scan with neighbours": (
        "{% set ns = namespace(q='') %}{% for m in messages|reverse %}{% if m.role == 'tool' %}{% set ns.q = ns.q ~ loop.index0 "
        "~ loop.revindex ~ loop.last ~ (loop.previtem.role if loop.previtem else '-') ~ (loop.nextitem.role if "
        "loop.nextitem else '-') %}{{ loop.cycle('a', 'b') }}{% endif %}{% endfor %}{{ ns.q }}"
    ),
    "scan without a loop variable": (
        "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% if m.role == 'tool' or m.content == 'bb' %}"
        "{% set ns.n = ns.n + 1 %}{{ m.content }}{% endif %}{% endfor %}{{ ns.n }}"
    ),
    "scan of a part": (
        "{% for m in messages[:3][::-1] %}{% if m.role == 'user' %}{{ loop.index }}{% endif %}{% endfor %}|"
        "{% for m in messages[::-1] %}{% if m.role == 'tool' %}{{ loop.index }}{% break %}{% endif %}{% endfor %}"
    ),
    "two flags": (
        "{% set ns = namespace(a=true, b=true) %}{% for m in messages[::-1] %}{% if ns.a and ns.b and m.role == 'user' %}"
        "{% if m.content == 'a' %}{% set ns.a = false %}{% else %}{% set ns.b = not ns.b %}{% endif %}{{ loop.index }}"
        "{% endif %}{% endfor %}"
    ),
    "a flag that comes back": (
        "{% set ns = namespace(on=true) %}{% for m in messages[::-1] %}{% if ns.on and m.role == 'user' %}"
        "{% set ns.on = false %}{{ m.content }}{% endif %}{% if m.role == 'tool' %}{% set ns.on = true %}{% endif %}{% endfor %}"
    ),
    "scan that does else": (
        "{% for m in messages[::-1] %}{% if m.role == 'user' %}u{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "scan by index": (
        "{% set ns = namespace(last=-1) %}{% for i in range(messages|length-1, -1, -1) %}{% if messages[i]['role'] == "
        "'assistant' and not messages[i].get('calls') %}{% set ns.last = i %}{% break %}{% endif %}{% endfor %}"
        "{% for m in messages[:ns.last+1] %}{{ m.content }};{% endfor %}#{% for m in messages[ns.last+1:] %}{{ m.role }}{% endfor %}"
    ),
    "scan by index and neighbour": (
        "{% for i in range(messages|length-1, -1, -1) %}{% if messages[i].role == 'user' and messages[i-1].role == 'tool' %}"
        "{{ i }}{% endif %}{% endfor %}|{% for i in range(9, -1, -1) %}{% if messages[i].role == 'user' %}{{ i }}{% endif %}{% endfor %}"
    ),
    "compares the length": (
        "{% set last = messages|length - 1 %}{% for m in messages %}{% if loop.index0 == last %}L{% endif %}"
        "{% if loop.index == loop.length %}l{% endif %}{% if loop.index0 >= messages|length - 3 %}t{% endif %}"
        "{% if 4 < loop.index %}4{% endif %}{{ m.content }};{% endfor %}"
    ),
    "compares and computes": (
        "{% set last = messages|length - 1 %}{% for m in messages %}{% if last - 5 < loop.index0 %}5{% endif %}"
        "{% if last - loop.index0 > 3 %}3{% endif %}{% if loop.index0 in [last, 2] %}i{% endif %}"
        "{% if 1 < loop.index0 < last %}b{% endif %}{{ m.content }};{% endfor %}"
    ),
    "compares and reads": (
        "{% set ns = namespace(q=-1, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.q = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}{% if loop.index0 > ns.q %}*{% set ns.n = ns.n + 1 %}{% endif %}"
        "{{ ns.n }}{{ m.content }}{% if m.role == 'tool' %}{{ ns.q }}{% endif %};{% endfor %}{{ ns.n }}{{ ns.q }}"
    ),
    "compares what it counts": (
        "{% set ns = namespace(q=-1, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.q = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}{% if loop.index0 >= ns.q %}*{% endif %}"
        "{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }};{% endfor %}{{ ns.n }}{{ ns.q }}"
    ),
    "two names of one space": (
        "{% set ns = namespace(q=3) %}{% set other = ns %}{% for m in messages %}{% if loop.index0 > ns.q %}*{% endif %}"
        "{% if m.role == 'user' %}{% set other.q = loop.index0 + 2 %}{% endif %}{{ other.q }}{{ m.content }}{% endfor %}"
    ),
    "compares in a macro": (
        "{% set ns = namespace(q=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.q = loop.index0 %}{% endif %}"
        "{% endfor %}{% macro show(i) %}{{ i > ns.q }}{% endmacro %}{% for m in messages %}{{ show(loop.index0) }}"
        "{% if loop.index0 > ns.q %}!{% endif %}{% endfor %}"
    ),
    "compares in an inner loop": (
        "{% set ns = namespace(q=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.q = loop.index0 %}{% endif %}"
        "{% endfor %}{% for m in messages %}{% for c in m.content %}{% if loop.index0 > ns.q %}{{ c }}{% endif %}{% endfor %};{% endfor %}"
    ),
    "compares with nothing": (
        "{% for m in messages %}{% if loop.index0 > ns.q %}{{ m.content }}{% endif %}{% endfor %}"
        "{% set ns = namespace(q=1) %}"
    ),
    "compares behind a question": (
        "{% if mode is defined %}{% set ns = namespace(q=3) %}{% endif %}{% for m in messages %}"
        "{% if m.role == 'tool' and loop.index0 > ns.q %}!{% endif %}{{ m.content }}{% endfor %}"
    ),
    "macro looks by place": (
        "{% macro count(lo, hi, role) %}{% set ns = namespace(n=0) %}{% for k in range(lo, hi + 1) %}"
        "{% if messages[k].role == role %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.n }}{% endmacro %}"
        "{% for m in messages %}{{ count(loop.index0 - 2 if loop.index > 2 else 0, loop.index0, 'user') }}{{ m.content }};{% endfor %}"
        "{% for m in messages %}{{ count(loop.index0, loop.index0, m.role) }}{% endfor %}{{ count(0, 0, 'tool') if messages }}"
    ),
    "macro looks ahead and before the first": (
        "{% macro at(i) %}{{ (messages[i] | default({'role': '-'})).role }}{% endmacro %}"
        "{% for m in messages %}{{ at(loop.index0 - 2) }}{{ at(loop.index0 + 2) }};{% endfor %}"
    ),
    "block of tools": (
        "{% for m in messages %}{% if m.role == 'tool' and (loop.first or messages[loop.index0 - 1].role != 'tool') %}"
        "{% set blk = namespace(end=0) %}{% for j in range(loop.index0, messages|length) %}"
        "{% if messages[j].role == 'tool' %}{% set blk.end = j %}{% else %}{% break %}{% endif %}{% endfor %}"
        "<{{ blk.end }}:{% for k in range(loop.index0, blk.end + 1) %}{{ messages[k].content }},{% endfor %}>"
        "{% elif m.role != 'tool' %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "counts up without looking": (
        "{% for m in messages %}{{ m.content }}{% for j in range(loop.index0, messages|length) %}{{ j }}"
        "{% if j > loop.index + 2 %}{% break %}{% endif %}{% endfor %};{% endfor %}"
    ),
    "macro of another list": (
        "{% macro second(messages) %}{{ messages[1] }}{% endmacro %}{% macro first() %}{{ messages[0].role }}{% endmacro %}"
        "{% for m in messages %}{{ second(m.content) }}{{ first() }}{% endfor %}"
    ),
    "list replaced behind a macro": (
        "{% macro next(i) %}{{ messages[i].role }}{% endmacro %}{% set messages = messages[1:] %}"
        "{% for m in messages %}{{ next(loop.index0) }}{{ messages[loop.index0].content }}{% endfor %}"
    ),
    "macro under a condition": (
        "{% if tools %}{% macro show(m) %}[{{ m.content }}]{% endmacro %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}{{ show(m) }}{% endif %}{{ m.content }};{% endfor %}"
    ),
    "macro of two kinds": (
        "{% if tools %}{% macro show(m) %}[{{ m.content }}]{% endmacro %}{% else %}{% macro show(m) %}({{ m.content }})"
        "{% endmacro %}{% endif %}{% for m in messages %}{{ show(m) }};{% endfor %}"
    ),
    "compares with the tools, and asks for the length": (
        "{% set q = tools|length if tools else 0 %}{% for m in messages %}{{ loop.length }}"
        "{% if loop.index0 > q %}*{% endif %}{{ m.content }}{% endfor %}"
    ),
    "compares with the first message": (
        "{% set rest = messages[1:] %}{% set q = messages[0].content|length if messages else 0 %}{% for m in rest %}"
        "{{ loop.length }}{% if loop.index > q %}*{% endif %}{{ m.content }}{% endfor %}#"
        "{% for m in rest %}{% if loop.index > q %}*{% endif %}{{ m.content }}{% endfor %}"
    ),
    "compares with no number": (
        "{% set q = messages[0].content if messages else '' %}{% for m in messages[1:] %}{% if [loop.index0] == q %}!{% endif %}"
        "{% if loop.index0 ~ '' == q %}={% endif %}{% if loop.index0 == q %}?{% endif %}{{ m.content }}{% endfor %}"
    ),
    "scan for a flag that may be undefined": (
        "{% if mode is defined %}{% set ns = namespace(on=true) %}{% endif %}"
        "{% for m in messages[::-1] %}{% if ns.on and m.role == 'never' %}x{% endif %}{% endfor %}"
    ),
    "scan whose flag is its place": (
        "{% for m in messages[::-1] %}{% set at = loop.index0 %}{% if at.real and m.role == 'user' %}{{ at }}{% endif %}{% endfor %}"
    ),
    "scan that changes its index": (
        "{% for i in range(messages|length - 1, -1, -1) %}{% set i = messages|length - 1 %}{% if messages[i].role == 'user' %}x{% endif %}{% endfor %}"
    ),
    "scan beside messages without a length": (
        "{% set all = messages %}{% if mode is defined %}{% set messages = none %}{% endif %}{% for m in all[::-1] %}"
        "{% set i = messages|length - loop.index0 %}{% if m.role == 'user' %}{{ i }}{% endif %}{% endfor %}"
    ),
    "scan that looks at nothing": (
        "{% for i in range(messages|length - 1, -1, -1) %}{% if 1 == 2 and nothing[i].role == 'user' %}x{% endif %}{% endfor %}"
    ),
    "compares with the length of no list": (
        "{% set found = messages|reverse %}{% for m in found %}{{ m.content }}{% if loop.index == loop.length %}L{% endif %}{% endfor %}"
        "{% set some = range(5) %}{% for i in some %}{% if loop.index < loop.length %}{{ i }}{% endif %}{% endfor %}"
    ),
    "compares with messages without a length": (
        "{% set all = messages %}{% set messages = none if mode is defined else nothing %}{% for m in all %}{{ m.content }}"
        "{% if m.role == 'tool' and (loop.index0 == messages|length - 1 or loop.index0 > messages|length) %}L{% endif %}{% endfor %}"
    ),
    "macro replaced by another": (
        "{% macro a() %}A{% endmacro %}{% macro b() %}B{% endmacro %}{% if tools %}{% set a = b %}{% endif %}"
        "{% for m in messages %}{{ a() }}{% endfor %}"
    ),
    "macro of another name": (
        "{% macro show() %}{% endmacro %}{% macro other() %}{{ tools|length }}{% endmacro %}{% macro call(show) %}{{ show() }}"
        "{% endmacro %}{% set alias = other %}{% for m in messages %}{{ call(alias) }}{% endfor %}"
    ),
    "macro named as a function": (
        "{% macro count() %}{{ tools|length }}{% endmacro %}{% set dict = count %}{% for m in messages %}{{ dict() }}{% endfor %}"
    ),
    "macro reads what the loop calls its item": (
        "{% macro count() %}{{ tools|length }}{{ loop|length }}{% endmacro %}{% set loop = messages %}"
        "{% for tools in messages %}{{ count() }}{{ tools.content }}{% endfor %}"
    ),
    "assigned behind the loop": (
        "{% macro show() %}{{ mode }}{% endmacro %}{{ show() }}{% for m in messages %}{{ show() }}{{ mode }}{% endfor %}"
        "{% set mode = 5 %}{{ mode }}"
    ),
    "assigned behind an inner loop": (
        "{% with %}{% set mode = 1 %}{% endwith %}{% for m in messages %}{% for c in m.content %}{{ mode }}{% endfor %}"
        "{% set mode = 5 %}{% endfor %}"
    ),
    "range of one's own": (
        "{% if tools %}{% set range = none %}{% endif %}{% for m in messages %}{% for j in range(loop.index0, messages|length) %}"
        "{{ messages[j].role }}{% break %}{% endfor %}{% endfor %}"
    ),
    "the loop handed on": (
        "{% for m in messages %}A{{ m.content }}{% if loop.index0 == 2 %}{% for other in loop %}{{ other[0].content }}{% endfor %}{% endif %}{% endfor %}"
    ),
    "a namespace printed": (
        "{% set ns = namespace(q=1, n=0) %}{% for m in messages %}{% if loop.index0 > ns.q %}*{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns }}"
    ),
    "one namespace or two": (
        "{% set a = namespace(v=1) %}{% if tools %}{% set b = a %}{% else %}{% set b = namespace(v=1) %}{% endif %}"
        "{% for m in messages %}{% set a.v = a.v + 1 %}{{ b.v }}{% endfor %}"
    ),
    "two names of one space, read by key": (
        "{% set ns = namespace(q=tools|length if tools else 0, n=0) %}{% set other = ns %}"
        "{% for m in messages %}{% if loop.index0 > ns.q %}*{% endif %}{{ ns.n }}{{ other['q'] }}{% endfor %}"
    ),
    "lists that change places": (
        "{% if tools %}{% set a = messages %}{% set b = messages[1:] %}{% else %}{% set b = messages %}{% set a = messages[1:] %}{% endif %}"
        "{% for m in messages %}{{ (a[loop.index0] | default(m)).role }}{{ (b[loop.index0] | default(m)).content }}{% endfor %}"
    ),
    "the same object": (
        "{% set ns = namespace(x=none) %}{% for m in messages %}{{ m.content }}{% set ns.x = extra %}{% endfor %}{{ ns.x is sameas extra }}"
    ),
    "clock": "{% for m in messages %}{{ strftime_now('%f') | length }}{{ m.content }}{% endfor %}",
}
