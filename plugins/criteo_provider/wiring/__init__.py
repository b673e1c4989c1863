"""Wiring: where settings, sources, ledger, pacer and Criteo are put together; the way in is House."""

from __future__ import annotations

from criteo_provider.flow.drain import Progress
from criteo_provider.store.metrics import StepNumbers
from criteo_provider.store.tokens import Cipher
from criteo_provider.wiring.house import House
from criteo_provider.wiring.surroundings import CriteoConnection, Surroundings, Waiting

__all__ = ["Cipher", "CriteoConnection", "House", "Progress", "StepNumbers", "Surroundings", "Waiting"]
