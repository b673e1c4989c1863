"""A chat on this machine, for Airflow's own HTTP notifier to tell."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

HTTP_NOTIFIER = "airflow.providers.http.notifications.http.HttpNotifier"
TEXT = "{{ criteo_news | join(' / ') }}"
# What `include/alerts.yaml` says of it, its Airflow connection being called `chat`.
NOTIFY = {"notifier": HTTP_NOTIFIER, "with": {"http_conn_id": "chat", "json": {"text": TEXT}}}


class Webhook(HTTPServer):
    """Keeps the messages it is sent; refuses the next ``refusals`` of them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.messages: list[Any] = []
        self.refusals = 0


class _Post(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.server.refusals > 0
        self.server.refusals -= refused
        if not refused:
            self.server.messages.append(json.loads(body))
        self.send_response(500 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    """Run one on a free port."""
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
