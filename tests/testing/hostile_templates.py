"""Chat templates that attack who renders them: by time, by memory, by depth, by the length of what
they say.

Nothing but the standard library is imported here: ``benchmarks/attack.py`` uses these too.
"""

from __future__ import annotations

from collections.abc import Iterator


def _growing(start: str, step: str, rounds: int = 64, end: str = "ns.s|length") -> str:
    """A value that every round makes anew of itself."""
    loop = f"{{% for i in range({rounds}) %}}{{% set ns.s = {step} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(s={start}) %}}{loop}{{{{ {end} }}}}"


def _nested(loops: int, times: int, inside: str = "") -> str:
    """``inside``, ``times`` to the power of ``loops`` times."""
    opened = "".join(f"{{% for v{i} in range({times}) %}}" for i in range(loops))
    return opened + inside + "{% endfor %}" * loops


# Each takes more than 2 s or 256 MiB, crashes, or counts beyond what a sandbox lets it: all are to
# be refused.
ATTACKS: dict[str, str] = {
    "range": "{{ range(10000000000)|list|length }}",
    "range_join": "{{ range(99999)|join('x'*99999)|length }}",
    "text_times": "{{ 'A'*10000000000 }}",
    "text_times_length": "{{ ('A'*10000000000)|length }}",
    "list_times": "{{ [0]*1000000000 }}",
    "tuple_times": "{{ ((0,)*1000000000)|length }}",
    "power": "{{ 2**(10**9) }}",
    "power_text": "{{ (2**3000000)|string|length }}{{ (10**10**8) % 7 }}",
    "percent_width": "{{ '%1000000000d' % 1 }}",
    "percent_star": "{{ '%*d' % (1000000000, 1) }}",
    "format_width": "{{ '{:>1000000000}'.format(1) }}",
    "format_filter": "{{ '%1000000000s'|format('x') }}",
    "ljust": "{{ 'x'.ljust(10000000000) }}",
    "zfill": "{{ 'x'.zfill(10000000000) }}",
    "center": "{{ 'x'.center(10000000000) }}",
    "center_filter": "{{ 'x'|center(10000000000) }}",
    "indent_filter": "{{ ('x\\n'*100000)|indent(100000) }}",
    "expandtabs": "{{ ('\\t'*100000).expandtabs(100000)|length }}",
    "replace_blow": "{{ ('a'*100000).replace('a', 'b'*100000)|length }}",
    "replace_filter": "{{ ('a'*100000)|replace('a', 'b'*100000)|length }}",
    "join_blow": "{{ ('x'*100000).join('y'*100000)|length }}",
    "doubling": _growing("'A'", "ns.s + ns.s"),
    "doubling_list": _growing("[1]", "ns.s + ns.s"),
    "squaring": _growing("3", "ns.s * ns.s", end="ns.s % 7"),
    "format_doubling": _growing("'A'", "'%s%s' % (ns.s, ns.s)"),
    "tilde_doubling": _growing("'A'", "ns.s ~ ns.s"),
    "nests": _nested(2, 99999),
    "nests_deep": _nested(4, 999),
    "output": _nested(2, 99999, "x" * 16),
    "macro": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "macro_twin": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro "
    "%}{{ a() }}",
    "macro_tree": "{% macro m(n) %}{% if n < 60 %}{{ m(n + 1) }}{{ m(n + 1) }}{% endif %}{% "
    "endmacro %}{{ m(0) }}",
    "macro_caller": "{% macro m() %}{{ caller() }}{% call m() %}x{% endcall %}{% endmacro %}"
    "{% call m() %}y{% endcall %}",
    "loop_recursive": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "sort": "{% for a in range(9999) %}{{ (range(99999)|sort(reverse=true))|length }}{% endfor %}",
    "batch": "{{ [1]|batch(1000000000, 0)|list|length }}",
    "slice": "{{ [1]|slice(1000000000)|list|length }}",
    "wordwrap": "{% for a in range(9999) %}{{ (a|string + 'ab '*99999)|wordwrap(1)|length }}{% "
    "endfor %}",
    "urlize": "{% for a in range(9999) %}{{ (a|string + 'http://a.b '*9999)|urlize|length }}{% "
    "endfor %}",
    "striptags": "{% for a in range(9999) %}{{ (a|string + '<b>'*99999)|striptags|length }}{% "
    "endfor %}",
    "split": "{% for a in range(9999) %}{{ ('a '*99999).split()|length }}{% endfor %}",
    "lipsum": "{{ lipsum(n=99999, min=9999, max=10000)|length }}",
    "cycle": "{% set c = cycler(*range(99999)) %}" + _nested(2, 99999, "{{ c.next() }}"),
    "tojson": _growing("[1]", "[ns.s, ns.s]", 40, "ns.s|tojson|length"),
    "sum": "{{ range(99999)|map('string')|sum(start='')|length }}{{ "
    "([[1]*9999]*99999)|sum(start=[])|length }}",
    "counting": "{% set ns = namespace(n=0) %}" + _nested(3, 9999, "{% set ns.n = ns.n + 1 %}"),
}
# Ways to come later than at once, or only when something holds; ``%s`` is the attack.
WRAPPERS: dict[str, str] = {
    "bare": "%s",
    "after_text": "<|user|>{{ messages[0]['content'] }}<|end|>%s",
    "if_user": "{%% if messages[-1]['role'] == 'user' %%}%s{%% endif %%}",
    "in_loop": "{%% for message in messages %%}%s{%% endfor %%}",
    "in_macro": "{%% macro attack() %%}%s{%% endmacro %%}{{ attack() }}",
    "in_set": "{%% set hidden %%}%s{%% endset %%}{{ hidden|length }}",
    "in_filter": "{%% filter upper %%}%s{%% endfilter %%}",
    "in_with": "{%% with a = 1 %%}%s{%% endwith %%}",
}


def deep(kind: str, levels: int) -> str:
    """A template that nests ``levels`` deep: what compiles it runs out of stack, or of patience."""
    return {
        "parentheses": "{{ " + "(" * levels + "1" + ")" * levels + " }}",
        "filters": "{{ 'a'" + "|upper" * levels + " }}",
        "nots": "{{ " + "not " * levels + "1 }}",
        "lists": "{{ " + "[" * levels + "]" * levels + " }}",
        "ifs": "{% if 1 %}" * levels + "{% endif %}" * levels,
        "attributes": "{{ messages" + "[0]" * levels + " }}",
        "minus": "{{ " + "-" * levels + "1 }}",
        "ternary": "{{ " + "1 if 1 else " * levels + "1 }}",
    }[kind]


DEEP = ("parentheses", "filters", "nots", "lists", "ifs", "attributes", "minus", "ternary")


def variations() -> Iterator[tuple[str, str]]:
    """(name, template): more than 300; every attack in every wrapper that can hold it, and the deep
    ones."""
    for name, attack in ATTACKS.items():
        for wrapper, around in WRAPPERS.items():
            if "{% macro" in attack and wrapper != "bare":
                continue  # a macro sees no other one from within these
            yield f"{name}-{wrapper}", around % attack
    for kind in DEEP:
        for levels in (1000, 100_000):
            yield f"deep-{kind}-{levels}", deep(kind, levels)
