"""The tests, in tiers that mirror the package; the folders below need no `__init__.py`."""
