from __future__ import annotations

import pytest

from criteo_provider.core.errors import Misconfigured
from criteo_provider.sources.keyset import Keyset, Statement


def statements(paramstyle: str, *, after: tuple[object, ...] | None, upto: object = None) -> list[Statement]:
    keyset = Keyset("SELECT * FROM t WHERE name LIKE 'a%';", paramstyle=paramstyle, quote='"')
    return list(keyset.ranges(["a", "b", "x%"], ["a", "b"], after=after, upto=upto, limit=5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("paramstyle", "condition", "parameters"),
    [
        ("qmark", '"a" = ? AND "b" > ?', (1, 2)),
        ("format", '"a" = %s AND "b" > %s', (1, 2)),
        ("numeric", '"a" = :1 AND "b" > :2', (1, 2)),
        ("named", '"a" = :p1 AND "b" > :p2', {"p1": 1, "p2": 2}),
        ("pyformat", '"a" = %(p1)s AND "b" > %(p2)s', {"p1": 1, "p2": 2}),
    ],
)
def test_every_paramstyle_gets_its_placeholders(paramstyle: str, condition: str, parameters: object) -> None:
    """Values are bound in the driver's own style, never written into the text."""
    ties, rest = statements(paramstyle, after=(1, 2))
    assert f'WHERE {condition} ORDER BY "a", "b" LIMIT 5' in ties.sql
    assert ties.parameters == parameters
    assert rest.sql.count("AND") == 1


@pytest.mark.parametrize(("paramstyle", "doubled"), [("qmark", False), ("format", True), ("pyformat", True)])
def test_percent_signs_of_the_segment_reach_the_database_as_they_are(paramstyle: str, doubled: bool) -> None:
    """Drivers that look for % get them doubled when there are parameters, and only then."""
    first = statements(paramstyle, after=None)[0]
    assert "LIKE 'a%'\n" in first.sql
    assert '"x%"' in first.sql
    later = statements(paramstyle, after=(1, 2))[0]
    assert ("LIKE 'a%%'\n" in later.sql) is doubled


def test_names_are_quoted() -> None:
    """A column name cannot end its quotes."""
    keyset = Keyset("SELECT 1", paramstyle="qmark", quote="`")
    assert "`a``; DROP`" in keyset.without_value("a`; DROP").sql


def test_an_unknown_paramstyle_is_refused() -> None:
    """A driver that speaks no style of PEP 249 is named."""
    with pytest.raises(Misconfigured, match="'dollar'"):
        Keyset("SELECT 1", paramstyle="dollar", quote='"')
