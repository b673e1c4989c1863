"""YAML without its traps: plain data only, and no key twice in one block."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

from criteo_provider.settings.problems import Finding


class _Loader(yaml.SafeLoader):
    """A safe loader that remembers the keys it met twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[Finding] = []

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or key.value == "<<":
                continue
            if key.value in first_lines:
                what = f"stands twice in one block, in lines {first_lines[key.value]} and {line}."
                self.twice.append(Finding((key.value,), what, "Keep one of them."))
            first_lines.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> tuple[object, list[Finding]]:
    """Return the data of one YAML document (None where unreadable), and what is wrong with it as YAML."""
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        tab = " Indent with spaces, not tabs." if "'\\t'" in str(error.problem) else ""
        tag = " Tags such as !!python are not read." if isinstance(error, ConstructorError) else ""
        return None, [Finding((), f"is not readable as YAML{where}.", f"Correct that line.{tab}{tag}")]
    except (yaml.YAMLError, ValueError, RecursionError):
        return None, [Finding((), "is not readable as YAML.", "Write plain UTF-8 text, and no impossible dates.")]
    return data, loader.twice
