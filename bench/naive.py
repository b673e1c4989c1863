"""The yardsticks: the same people taken to the same sandbox by what one would write instead.

Each is timed from its first row to its last: imports, a token and a table are no part of it, nor of our own figures.
"""

from __future__ import annotations

import importlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import requests
from sqlalchemy import Engine, create_engine, text

from bench.measure import costing
from bench.shop import QUERY
from criteo_provider.sandbox.running import Sandbox

SDK = "criteo_api_marketingsolutions_v2026_07"
CHUNK = 50_000
Send = Callable[[list[str]], None]


def sdk_and_status_column(url: str, sandbox: Sandbox, shop: Path, people: int) -> float:
    """pandas, the official SDK, and a status column updated user by user; return users a second."""
    send = _by_sdk(sandbox, "by sdk")
    with _new_table(url, "naive (customer varchar(80) PRIMARY KEY, digest text, status text)") as engine:
        return _timed(people, lambda: _status_column(engine, send, shop, people))


def requests_and_bulk_insert(url: str, sandbox: Sandbox, shop: Path, people: int) -> float:
    """pandas, requests, and a bulk insert of what was sent; return users a second."""
    send = _by_requests(sandbox, "by requests")
    with _new_table(url, "outcome (customer text, digest text, status text, at_s float)") as engine:
        return _timed(people, lambda: _outcome_log(engine, send, shop, people))


def _timed(people: int, work: Callable[[], None]) -> float:
    with costing() as cost:
        work()
    return people / cost.wall_s


@contextmanager
def _new_table(url: str, declared: str) -> Iterator[Engine]:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {declared}"))
    try:
        yield engine
    finally:
        engine.dispose()


def _frames(shop: Path, people: int) -> Iterator[pd.DataFrame]:
    with closing(sqlite3.connect(shop)) as opened:
        yield from pd.read_sql(f"{QUERY} ORDER BY serial LIMIT {people:d}", opened, chunksize=CHUNK)


def _hashed(frame: pd.DataFrame) -> pd.DataFrame:
    wanted = frame[(frame["ads"] == 1) & frame["email"].notna()]
    digests = wanted["email"].str.strip().str.lower().map(lambda address: sha256(address.encode()).hexdigest())
    return wanted.assign(digest=digests)


def _status_column(engine: Engine, send: Send, shop: Path, people: int) -> None:
    for frame in _frames(shop, people):
        wanted = _hashed(frame)
        rows = [
            {"customer": customer, "digest": digest}
            for customer, digest in zip(wanted["customer"], wanted["digest"], strict=True)
        ]
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO naive VALUES (:customer, :digest, 'pending')"), rows)
        send(list(wanted["digest"]))
        with engine.begin() as connection:
            connection.execute(text("UPDATE naive SET status = 'synced' WHERE customer = :customer"), rows)


def _outcome_log(engine: Engine, send: Send, shop: Path, people: int) -> None:
    for frame in _frames(shop, people):
        wanted = _hashed(frame)
        send(list(wanted["digest"]))
        sent = wanted[["customer", "digest"]].assign(status="synced", at_s=time.time())
        sent.to_sql("outcome", engine, if_exists="append", index=False, chunksize=5_000)


def _by_requests(sandbox: Sandbox, name: str) -> Send:
    session, segment_id = requests.Session(), sandbox.add_segment(sandbox.advertiser_id, name)
    answer = session.post(
        f"{sandbox.url}/oauth2/token",
        data={
            "grant_type": "client_credentials",
            "client_id": sandbox.client_id,
            "client_secret": sandbox.client_secret,
        },
        timeout=60,
    )
    session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    url = f"{sandbox.url}/2026-07/marketing-solutions/audience-segments/{segment_id}/contact-list"

    def send(digests: list[str]) -> None:
        session.patch(url, json=_amendment(digests), timeout=60).raise_for_status()

    return send


def _by_sdk(sandbox: Sandbox, name: str) -> Send:
    module: Callable[[str], Any] = lambda path: importlib.import_module(f"{SDK}.{path}")  # noqa: E731
    builder = module("api_client_builder").ApiClientBuilder
    client = builder.WithClientCredentials(sandbox.client_id, sandbox.client_secret, host=sandbox.url)
    audiences = module("api.audience_api").AudienceApi(client)
    utils, configuration = module("model_utils"), module("configuration").Configuration()
    models = vars(module("model.contactlist_amendment_request"))
    wanted = next(value for key, value in models.items() if key.lower() == "contactlistamendmentrequest")
    segment_id = sandbox.add_segment(sandbox.advertiser_id, name)
    # The SDK would ask for its token with the first request.
    client.rest_client.authorization.get_token(client.rest_client, client.default_headers)

    def send(digests: list[str]) -> None:
        body = utils.validate_and_convert_types(
            _amendment(digests), (wanted,), ["body"], spec_property_naming=True, _check_type=True,
            configuration=configuration,
        )  # fmt: skip
        audiences.update_contact_list_by_audience_segment(segment_id, contactlist_amendment_request=body)

    return send


def _amendment(digests: list[str]) -> dict[str, Any]:
    attributes = {"operation": "add", "identifierType": "email", "identifiers": digests}
    return {"data": {"type": "ContactlistAmendment", "attributes": attributes}}
