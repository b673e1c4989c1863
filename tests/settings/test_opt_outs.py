"""Opt-out feeds: read from YAML, and every mistake told with what, where and how to mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from criteo_provider.core.identifiers import EmailHash
from criteo_provider.settings.opt_outs import OptOutFeed, load_feeds

GOOD: dict[str, Any] = {
    "name": "Do not sell or share",
    "owner": "privacy-team",
    "source": {"python": {"callable": "my_feeds.opt_outs", "cursor": "told_at"}},
    "user_key": "customer_id",
    "identifiers": {"email": "email", "gum": {"column": "gum_id", "caller_id": 7}},
    "canvases": "all",
}


def write(include: Path, declared: object, name: str = "do_not_sell.yaml") -> None:
    (include / "opt_outs").mkdir(exist_ok=True)
    (include / "opt_outs" / name).write_text(yaml.safe_dump(declared))


def read(include: Path) -> OptOutFeed:
    found = load_feeds(include)
    assert found.problems == ()
    return found.feeds[0]


def problems(include: Path) -> list[str]:
    found = load_feeds(include)
    assert found.feeds == ()
    return [str(problem).removeprefix(f"{include.name}/opt_outs/") for problem in found.problems]


def test_without_a_folder_there_are_no_feeds(tmp_path: Path) -> None:
    """Nobody has to have opt-outs."""
    assert load_feeds(tmp_path).feeds == load_feeds(tmp_path).problems == ()


def test_a_feed_is_known_by_its_file(tmp_path: Path) -> None:
    """The id is the file's name behind the folder's, the columns are those of key, identifiers and conditions."""
    write(tmp_path, GOOD | {"taken_back": {"status": {"in": ["in", "again"]}}})
    feed = read(tmp_path)
    assert feed.id == "opt_outs/do_not_sell"
    assert feed.columns == ("customer_id", "email", "gum_id", "status")
    assert feed.taken_back_rule.mask({"status": ["in", "out", None]}) == [True, False, False]
    assert feed.declaration.canvases is None
    assert feed.declaration.retry_for_s == 13 * 3600


def test_an_address_opts_out_in_every_form(tmp_path: Path) -> None:
    """A plain address stands for all its hashes, whatever canvases send."""
    write(tmp_path, GOOD)
    email = read(tmp_path).identifier_columns[0]
    assert email.email_hashes == tuple(EmailHash)


def test_chosen_canvases_and_a_bare_column(tmp_path: Path) -> None:
    """Canvases may be one id or a list; a bare column in taken_back means that column being true."""
    write(tmp_path, GOOD | {"canvases": "vip", "taken_back": "opted_in"})
    feed = read(tmp_path)
    assert feed.declaration.canvases == ("vip",)
    assert feed.taken_back_rule.mask({"opted_in": [True, 0, None, "true"]}) == [True, False, False, True]


def test_every_change_changes_the_fingerprint(tmp_path: Path) -> None:
    """The ledger sees that a feed has another scope."""
    write(tmp_path, GOOD)
    before = read(tmp_path).fingerprint
    write(tmp_path, GOOD | {"canvases": ["vip"]})
    assert read(tmp_path).fingerprint != before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"user_key": None, "identifiers": None},
            "do_not_sell.yaml: the file names nobody: neither user_key nor identifiers are declared. Add `user_key:`.",
        ),
        ({"canvases": None}, "do_not_sell.yaml: canvases has to be a list. Write it like `canvases: all`."),
        ({"canvases": []}, "do_not_sell.yaml: canvases is empty. Write it like `canvases: all`."),
        (
            {"source": {}},
            "do_not_sell.yaml: source names no source. Keep exactly one of sql, files, http, python.",
        ),
        (
            {"identifiers": {"mail": "email"}},
            "do_not_sell.yaml: identifiers.mail is not a key that belongs here. Did you mean email?",
        ),
        (
            {"identifiers": {"email": "column", "madid": "column"}},
            "do_not_sell.yaml: identifiers.madid takes the same column as email. "
            "Name the column that holds this identifier.",
        ),
        (
            {"consent": {}},
            "do_not_sell.yaml: consent is not a key that belongs here. "
            "Keys here are: name, owner, source, user_key, identifiers, canvases, taken_back, retry_for.",
        ),
        ({"retry_for": "soon"}, "do_not_sell.yaml: retry_for is not a length of time."),
        ({"taken_back": {"status": {"like": 1}}}, "do_not_sell.yaml: taken_back.status is a condition"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """What is wrong, where, and how to mend it."""
    write(tmp_path, GOOD | change)
    assert any(problem.startswith(told) for problem in problems(tmp_path)), problems(tmp_path)


def test_a_bad_name_and_an_empty_file(tmp_path: Path) -> None:
    """The file's name has to be an id, and the file has to hold a feed."""
    write(tmp_path, GOOD, "Do-Not-Sell.yaml")
    write(tmp_path, None, "empty.yaml")
    assert problems(tmp_path) == [
        "Do-Not-Sell.yaml: the file has a name that cannot be a feed id: 1 to 64 of a-z, 0-9 and underscore. "
        "Rename the file; the name stays for ever.",
        "empty.yaml: the file holds no feed. Begin with keys: name, owner, source, user_key, canvases.",
    ]
