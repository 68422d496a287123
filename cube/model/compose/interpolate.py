"""`$VAR` and `${VAR:-default}` in values, as the compose specification has them (12-interpolation.md).

Keys are left as they are. `$$` is a dollar sign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cube.model.treeread import Errors, join, shown

NESTED_MAX = 8  # ${A:-${B:-…}}
VALUE_CHARS_MAX = 64 * 1024  # of one value with variables: each nesting reads it again
CHARS_MAX = 1 << 20  # of all values of a file, once replaced: a long variable may be named often

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = (":-", ":?", ":+", "-", "?", "+")


class _Bad(Exception):
    """Why a value cannot be interpolated; at most one per value."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class Interpolation:
    """Replaces variables in one file. `variables` None: there are none, as in the API. `unset` are the
    names that became empty text, each with the paths of the values that named it."""

    def __init__(self, errors: Errors, variables: Mapping[str, str] | None) -> None:
        self._errors = errors
        self._variables = variables
        self._chars = 0
        self.unset: dict[str, list[str]] = {}

    def tree(self, path: str, value: object) -> object:
        """A copy of the tree with every text in it replaced. Depth is bounded by yamltext."""
        if isinstance(value, dict):
            return {key: self.tree(join(path, key), inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.tree(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
        if isinstance(value, str) and "$" in value:
            return self.text(path, value)
        return value

    def text(self, path: str, text: str) -> str:
        """The text with its variables replaced; as it was, with an error noted, when it cannot be."""
        try:
            if len(text) > VALUE_CHARS_MAX:
                raise _Bad(f"is {len(text)} characters long; at most {VALUE_CHARS_MAX} are read")
            found = self._replaced(path, text, 0)
        except _Bad as bad:
            self._errors.add(path, bad.problem, bad.hint)
            return text
        self._chars += len(found)
        if self._chars > CHARS_MAX:
            self._errors.add(
                path, "the values of this file are too long once variables are replaced"
            )
            return ""
        return found

    def _replaced(self, path: str, text: str, depth: int) -> str:
        if depth > NESTED_MAX:
            raise _Bad(f"has defaults nested more than {NESTED_MAX} deep")
        parts: list[str] = []
        position = chars = 0
        while (dollar := text.find("$", position)) >= 0:
            parts.append(text[position:dollar])
            part, position = self._variable(path, text, dollar + 1, depth)
            parts.append(part)
            chars += len(part)
            if chars > CHARS_MAX:  # now: a short text may stand for more than there is memory
                raise _Bad("is too long once its variables are replaced")
        parts.append(text[position:])
        return "".join(parts)

    def _variable(self, path: str, text: str, start: int, depth: int) -> tuple[str, int]:
        """What stands for the variable whose `$` is just before `start`, and where the text goes on."""
        if text.startswith("$", start):
            return "$", start + 1
        braced = text.startswith("{", start)
        name = _NAME.match(text, start + braced)
        if name is None:
            raise _Bad(
                f"{shown(text)} has a $ that begins no variable", "write $$ for a dollar sign"
            )
        if not braced:
            return self._value(path, name[0]), name.end()
        end = _closing(text, start + 1)
        if end < 0:
            raise _Bad(f"{shown(text)} has a ${{ without its }}")
        rest = text[name.end() : end]
        if not rest:
            return self._value(path, name[0]), end + 1
        operator = next((one for one in _OPERATORS if rest.startswith(one)), "")
        if not operator:
            raise _Bad(
                f"{shown('${' + name[0] + rest + '}')} is no variable",
                "accepted: ${VAR} ${VAR:-default} ${VAR-default} ${VAR:?error} ${VAR?error} "
                "${VAR:+other} ${VAR+other}",
            )
        return self._operated(path, name[0], operator, rest[len(operator) :], depth), end + 1

    def _operated(self, path: str, name: str, operator: str, word: str, depth: int) -> str:
        value = (self._variables or {}).get(name)
        is_there = value is not None and not (operator.startswith(":") and value == "")
        match operator[-1]:
            case "-":
                return str(value) if is_there else self._replaced(path, word, depth + 1)
            case "+":
                return self._replaced(path, word, depth + 1) if is_there else ""
            case _:
                if is_there:
                    return str(value)
                why = self._replaced(path, word, depth + 1) or "a value is required"
                raise _Bad(f"{name} is not set: {why[:200]}", f"set {name}, or write it into .env")

    def _value(self, path: str, name: str) -> str:
        if self._variables is None:
            raise _Bad(
                f"{name} is not set: the API knows no environment",
                f"write ${{{name}:-default}}, or let `cube run` read the file",
            )
        if name not in self._variables:
            self.unset.setdefault(name, []).append(path)
        return self._variables.get(name, "")


def _closing(text: str, start: int) -> int:
    """Where the brace that is open at `start` is closed, or −1."""
    depth, position = 1, start
    while position < len(text):
        if text.startswith("${", position):
            depth, position = depth + 1, position + 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return -1
