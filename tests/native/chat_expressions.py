"""Random expressions of jinja2's language, over the variables of the table of expressions.

Left out is what is known to differ (the list in rust/core/src/chat_template/mod.rs): chains of comparisons, ordering
filters over mixed types, text times a fraction, and what jinja2 folds while it compiles.
"""

import random

VALUES = (
    "s", "n", "neg", "f", "t", "fl", "none", "l", "ls", "d", "missing", "path", "nested", "e", "q", "num", "uni",
    "1", "2.5", "0", "'a'", "'%s'", "''", "[1, 'a']", "(1, 2)", "{'a': 1}", "[]", "true", "{}",
)  # fmt: skip
VARIABLES = tuple(value for value in VALUES[:17] if value != "none")
OPERATORS = ("+", "-", "//", "/", "%", "~", "~", "%", "and", "or")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in")
POSTFIXES = (
    ".items", ".get", ".a", ".b", ".x", "['a']", "['items']", "['keys']", "[0]", "[-1]", "[1:]", "[:2]", "[::-1]", ".r",
    ".upper()", ".keys() | list", ".items() | list", ".split('.')", ".count", ".strip()", ".update", ".copy",
)  # fmt: skip
FILTERS = (
    "list", "join", "join('-')", "length", "string", "default('x')", "default('x', true)", "upper", "trim", "first",
    "last", "tojson", "int", "sum", "reverse | list", "replace('a', 'b')", "title", "dictsort", "items | list",
    "batch(2) | list", "float", "capitalize", "lower", "string | truncate(3, leeway=0)", "count",
)  # fmt: skip
TESTS = (
    "defined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "boolean", "callable",
    "not none", "not defined", "lt(3)", "gt(1)", "in([1, 2])", "eq(1)", "true", "false", "float", "undefined",
)  # fmt: skip


class Expressions:
    """A stream of templates with one expression each."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def expression(self, depth: int = 0) -> str:
        choose = self._random.choice
        kind = self._random.random()
        if depth >= 3 or kind < 0.2:
            return choose(VALUES)
        if kind < 0.42:
            return f"{self.operand(depth)} {choose(OPERATORS)} {self.operand(depth)}"
        if kind < 0.52:
            return f"({self.operand(depth)} {choose(COMPARISONS)} {self.operand(depth)})"
        if kind < 0.62:
            return choose(VARIABLES) + choose(POSTFIXES)
        if kind < 0.8:
            return f"{self.operand(depth)} | {choose(FILTERS)}"
        if kind < 0.9:
            return f"({self.operand(depth)} is {choose(TESTS)})"
        if kind < 0.94:
            return f"({self.expression(depth + 1)} if {self.expression(depth + 1)} else {self.expression(depth + 1)})"
        if kind < 0.97:
            return f"(not {self.operand(depth)})"
        return f"[{self.expression(depth + 1)}, {self.expression(depth + 1)}]"

    def operand(self, depth: int) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(VALUES)
        return f"({self.expression(depth + 1)})"

    def template(self) -> str:
        kind = self._random.random()
        if kind < 0.7:
            return "{{ " + self.expression() + " }}"
        if kind < 0.8:
            return "{% for x in " + self.operand(1) + " %}{{ x }},{{ loop.index }};{% else %}none{% endfor %}"
        if kind < 0.9:
            return "{% if " + self.expression() + " %}yes{% else %}no{% endif %}"
        return "{% set y = " + self.expression() + " %}{{ y }}{{ y is defined }}"
