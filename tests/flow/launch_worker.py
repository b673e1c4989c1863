"""A process that launches, and stops for ever between Criteo's creation of an audience and the ledger's commit."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from criteo_provider.criteo_api.client import CriteoClient
from tests.flow.shop import Sealer, Shop, open_house


def main(task: dict[str, str]) -> None:
    """Drain until the audience is created, leave a mark, and wait for the end."""
    create = CriteoClient._create

    def create_and_stop(*given: Any, **more: Any) -> NoReturn:
        create(*given, **more)
        Path(task["mark"]).touch()
        while True:
            time.sleep(60)

    CriteoClient._create = create_and_stop  # type: ignore[method-assign, assignment]
    shop, cipher = Shop(Path(task["shop"])), Sealer(task["key"].encode())
    house = open_house(Path(task["include"]), task["ledger"], task["criteo"], shop.source, cipher=cipher)
    house.drain("fresh", stop=threading.Event(), max_s=60)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
