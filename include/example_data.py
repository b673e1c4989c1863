"""A made-up shop in SQLite for the example canvases; nobody in it exists.

    python include/example_data.py add           one more customer, to be watched on the way to Criteo
    python include/example_data.py add 1000000   many more, all in the segment of the canvas `retargeting`

Everybody is in one to three of the four segments. As in a real table, some identifiers are missing, blank,
malformed or hashed already, a few people share an address, and some never said whether ads may follow them.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

SHOP = Path(__file__).resolve().parent.parent / "var" / "run" / "example_shop.db"
ROWS_PER_TRANSACTION = 20_000  # far below what is written in the late_commit of the canvases

FIRST_NAMES = (
    "alex",
    "billie",
    "chris",
    "dominique",
    "søren",
    "jürgen",
    "zoë",
    "kim",
    "robin",
    "sam",
    "志明",
    "ólafur",
)
LAST_NAMES = ("doe", "example", "müller", "martin", "novák", "rossi", "smith", "garcía", "łukasik", "tanaka")
DOMAINS = ("example.com", "example.org", "example.net")

TABLE = """
CREATE TABLE IF NOT EXISTS customers (
    customer_id          INTEGER PRIMARY KEY,
    email                TEXT,
    maid                 TEXT,
    country              TEXT NOT NULL,
    orders               INTEGER NOT NULL,
    lifetime_value       REAL NOT NULL,
    last_order_on        TEXT,
    opened_last_message  INTEGER,
    ads_tracking_enabled INTEGER,
    do_not_sell_or_share INTEGER,
    updated_at           TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS customers_by_change ON customers (updated_at, customer_id);
"""
INSERT = "INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

Row = tuple[object, ...]
T = TypeVar("T")


def create(path: Path, people: int, seed: int = 7) -> None:
    """Make a new shop with this many customers in ``path``, the same ones for the same seed on the same day."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(_open(path)) as shop:
        shop.executescript(TABLE)
        rng = random.Random(seed)  # noqa: S311 (made-up people need no cryptography)
        for first in range(1, people + 1, ROWS_PER_TRANSACTION):
            count = min(ROWS_PER_TRANSACTION, people + 1 - first)
            with shop:
                shop.executemany(INSERT, _customers(rng, first, count))


def add_person(path: Path = SHOP) -> int:
    """Add one customer who enters `high_value_targeting` and `suppression`; return the customer_id."""
    with closing(_open(path)) as shop, shop:
        shop.execute("BEGIN IMMEDIATE")
        customer_id = _next_id(shop)
        now = datetime.now(UTC)
        email = f"new.person.{customer_id}@{DOMAINS[0]}"
        row = (customer_id, email, None, "DE", 3, 900.0, now.date().isoformat(), 1, 1, 0, _stamp(now))
        shop.execute(INSERT, row)
    return customer_id


def add_people(path: Path, people: int, seed: int = 8) -> None:
    """Add many customers who all enter `retargeting`, a backfill in transactions of 20,000 rows."""
    rng = random.Random(seed)  # noqa: S311 (made-up people need no cryptography)
    left = people
    with closing(_open(path)) as shop:
        while left > 0:
            count = min(ROWS_PER_TRANSACTION, left)
            with shop:
                shop.execute("BEGIN IMMEDIATE")
                first, stamp = _next_id(shop), _stamp(datetime.now(UTC))
                emails, devices = _emails(rng, first, count), _devices(rng, count)
                shop.executemany(
                    INSERT,
                    ((first + at, emails[at], devices[at], "DE", 0, 0.0, None, 0, 1, 0, stamp) for at in range(count)),
                )
            left -= count


def email_sha256(path: Path, customer_id: int) -> str:
    """Return what Criteo is sent for a customer's address: its SHA-256 in hexadecimal digits."""
    from criteo_provider.core.identifiers import Form, normalise, to_wire

    with closing(_open(path)) as shop:
        (email,) = shop.execute("SELECT email FROM customers WHERE customer_id = ?", (customer_id,)).fetchone()
    (digest,) = normalise("email", [email]).values[Form.EMAIL_SHA256].there
    return to_wire(digest, Form.EMAIL_SHA256)


def _customers(rng: random.Random, first: int, count: int) -> Iterator[Row]:
    """Make rows column by column, which is several times faster than person by person."""
    now = datetime.now(UTC)
    kinds = _mixed(rng, count, {"buyer": 50, "lapsed": 30, "subscriber": 20})
    days_ago = [rng.randrange(11) if kind == "buyer" else rng.randrange(40, 400) for kind in kinds]
    days = [(now - timedelta(days=ago)).date().isoformat() for ago in range(401)]
    opened = _mixed(rng, count, {1: 60, 0: 35, None: 5})
    often = _mixed(rng, count, {1: 40, 2: 20, 3: 15, 4: 10, 5: 8, 9: 5, 14: 2})
    orders = [0 if kind == "subscriber" else number for kind, number in zip(kinds, often, strict=True)]
    value = [round(number * rng.uniform(20, 180), 2) for number in orders]
    yield from zip(
        range(first, first + count),
        _emails(rng, first, count),
        _devices(rng, count),
        _mixed(rng, count, {"DE": 4, "FR": 3, "GB": 3, "US": 4, "NL": 1, "SE": 1}),
        orders,
        value,
        [days[ago] if number else None for ago, number in zip(days_ago, orders, strict=True)],
        # Who has not bought of late has not opened the last message either, so nobody is in no segment.
        [seen if kind == "buyer" else 0 for seen, kind in zip(opened, kinds, strict=True)],
        _mixed(rng, count, {1: 88, 0: 8, None: 4}),
        _mixed(rng, count, {0: 91, 1: 5, None: 4}),
        [_stamp(now - timedelta(days=ago, seconds=60 + rng.random() * 3_600)) for ago in days_ago],
        strict=True,
    )


def _emails(rng: random.Random, first: int, count: int) -> list[str | None]:
    names = zip(rng.choices(FIRST_NAMES, k=count), rng.choices(LAST_NAMES, k=count), strict=True)
    domains = rng.choices(DOMAINS, k=count)
    plain = [f"{name}.{family}.{first + at}@{domains[at]}" for at, (name, family) in enumerate(names)]
    made: list[str | None] = []
    kinds = {"plain": 880, "Typed": 50, "missing": 25, "blank": 10, "broken": 15, "sha256": 12, "md5": 5, "shared": 3}
    for at, kind in enumerate(_mixed(rng, count, kinds)):
        made.append(_email(kind, plain[at], plain[at - 1]))
    return made


def _email(kind: str, address: str, neighbour: str) -> str | None:
    match kind:
        case "Typed":
            return f" {address.title()} "
        case "missing":
            return None
        case "blank":
            return "  "
        case "broken":
            return address.replace("@", " at ")
        case "sha256":
            return hashlib.sha256(address.encode()).hexdigest().upper()
        case "md5":
            return hashlib.md5(address.encode(), usedforsecurity=False).hexdigest()
        case "shared":
            return neighbour
        case _:
            return address


def _devices(rng: random.Random, count: int) -> list[str | None]:
    made: list[str | None] = []
    for kind in _mixed(rng, count, {"idfa": 30, "aaid": 28, "missing": 38, "off": 3, "broken": 1}):
        digits = f"{rng.getrandbits(128):032x}"
        device = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        match kind:
            case "idfa":
                made.append(device.upper())
            case "aaid":
                made.append(device)
            case "missing":
                made.append(None)
            case "off":
                made.append("00000000-0000-0000-0000-000000000000")
            case _:
                made.append(digits[:20])
    return made


def _mixed(rng: random.Random, count: int, weights: dict[T, int]) -> Sequence[T]:
    return rng.choices(list(weights), list(weights.values()), k=count)


def _next_id(shop: sqlite3.Connection) -> int:
    (last,) = shop.execute("SELECT coalesce(max(customer_id), 0) FROM customers").fetchone()
    return int(last) + 1


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def _open(path: Path) -> sqlite3.Connection:
    shop = sqlite3.connect(path, timeout=30)
    shop.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a backfill
    return shop


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["create", "add"])
    parser.add_argument("people", type=int, nargs="?", help="how many (create: 100000, add: 1)")
    parser.add_argument("--shop", type=Path, default=SHOP, help="the database file (default: that of `make run`)")
    args = parser.parse_args()
    began_s = time.monotonic()
    if args.what == "create":
        if args.shop.exists():
            parser.error(f"{args.shop} is there already. Remove it, or add people to it.")
        create(args.shop, 100_000 if args.people is None else args.people)
    elif not args.shop.exists():
        parser.error(f"{args.shop} is not there. Start `make run`, or create it first.")
    elif args.people is None:
        print(f"Added customer {add_person(args.shop)}.")
        return
    else:
        add_people(args.shop, args.people)
    with closing(_open(args.shop)) as shop:
        (total,) = shop.execute("SELECT count(*) FROM customers").fetchone()
    print(f"{total:,} customers in {args.shop} after {time.monotonic() - began_s:.1f} s.")


if __name__ == "__main__":
    _main()
