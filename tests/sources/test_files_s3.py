from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from criteo_provider.core.errors import SourceFailed
from criteo_provider.sources.files import FilesSource
from tests.sources.table import nothing_seen
from tests.sources.test_files import Ledger


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """A local S3 in a thread of the test, on a port nobody can take from it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket as Airflow opens it: an ObjectStoragePath with an Airflow connection."""
    from airflow.sdk import ObjectStoragePath

    # Airflow keeps a store for each connection id as long as the process lives, so each server has its own.
    conn_id = "s3_at_" + s3_url.rpartition(":")[2]
    monkeypatch.setenv(
        f"AIRFLOW_CONN_{conn_id.upper()}",
        '{"conn_type": "aws", "login": "key", "password": "secret", "extra": '
        f'{{"endpoint_url": "{s3_url}", "region_name": "us-east-1"}}}}',
    )
    path = ObjectStoragePath("s3://people/in", conn_id=conn_id)
    path.fs.invalidate_cache()
    path.fs.mkdir("people")
    yield path
    path.fs.invalidate_cache()
    path.fs.rm("people", recursive=True)


def source(path: Any) -> FilesSource:
    # Objects appear whole, so the two quiet seconds need not be waited for.
    return FilesSource(path, columns=["id"], now_us=lambda: int((time.time() + 10) * 1e6))


def test_objects_of_s3_are_read_once_each(bucket: Any) -> None:
    """New objects are seen though the store keeps a cache, each is read once, and a replaced one again."""
    reader, ledger = source(bucket), Ledger()
    assert not reader.is_ahead(None, ledger.seen)
    for n in range(3):
        (bucket / f"day{n}" / "a.csv").write_text(f"id,email\n{n},x\n")
    assert reader.is_ahead(None, ledger.seen)
    ledger.enter(reader)
    assert sorted(ledger.ids) == ["0", "1", "2"]
    assert not source(bucket).is_ahead(ledger.position, ledger.seen)
    (bucket / "day1" / "a.csv").write_text("id,email\n7,x\n")
    ledger.enter(reader)
    assert sorted(ledger.ids) == ["0", "1", "2", "7"]


def test_an_interrupted_parquet_object_goes_on_at_its_next_row(bucket: Any) -> None:
    """A Parquet object is read a part at a time, over any number of new beginnings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (bucket / "a.parquet").open("wb") as stream:
        pq.write_table(pa.table({"id": list(range(1000))}), stream, row_group_size=300)
    ledger = Ledger()
    for _ in range(10):
        ledger.enter(source(bucket), max_rows=250, pages=1)
    assert ledger.ids == [str(n) for n in range(1000)]
    assert not source(bucket).is_ahead(ledger.position, ledger.seen)


def test_a_bucket_that_is_not_there_is_one_sentence(bucket: Any) -> None:
    """A wrong bucket is SourceFailed and nothing else."""
    from airflow.sdk import ObjectStoragePath

    with pytest.raises(SourceFailed, match="there is no folder"):
        source(ObjectStoragePath("s3://nowhere/in", conn_id=bucket.conn_id)).is_ahead(None, nothing_seen)
