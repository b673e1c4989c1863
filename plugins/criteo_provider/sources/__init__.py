"""Sources: where people come from (sql, files, http, python), each a ``core.ports.Source``; no Airflow."""
