"""A process that takes slots as fast as it may and notes when it sent: run by `test_pacer_processes.py`."""

from __future__ import annotations

import http.client
import json
import os
import struct
import sys
import time

from criteo_provider.store.engine import open_engine
from criteo_provider.store.pacer import Pacer


def main() -> None:
    """Send until killed; every send is in the file the moment it happened."""
    task = json.loads(sys.argv[1])
    engine = open_engine(task["url"], pool_size=2)
    pacer = Pacer(engine, "made-up", **task["pace"])
    server = http.client.HTTPConnection(task["server"], timeout=30) if task["server"] else None
    notes = os.open(task["notes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        pacer.take()
        os.write(notes, struct.pack("d", time.monotonic()))
        if server is not None:
            server.request("GET", "/2026-07/advertisers/me", headers={"Authorization": task["authorization"]})
            answer = server.getresponse()
            answer.read()
            pacer.observed(answer.status, dict(answer.getheaders()))


if __name__ == "__main__":
    main()
