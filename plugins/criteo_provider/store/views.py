"""One row per user and step, for people and SQL tools, on both engines."""

from __future__ import annotations

# SQLite seeks the one exception that could hold the ordinal: 0.5 µs a user. PostgreSQL joins by hash instead.
_SQLITE = """
CREATE VIEW user_status AS
SELECT step.canvas_id AS canvas, step.name AS step, people.value AS user_key,
       CASE coalesce(exception.status, stage.status)
            WHEN 0 THEN 'Pending' WHEN 1 THEN 'Synced' WHEN 2 THEN 'Not Synced' ELSE 'Errored' END AS status,
       CASE WHEN exception.status IS NULL THEN stage.reason ELSE exception.reason END AS reason,
       stage.enters_us AS entered_us, stage.chunk_id AS chunk_id, people.key AS ordinal
FROM stage
JOIN step ON step.id = stage.step_id
JOIN chunk ON chunk.id = stage.chunk_id
JOIN json_each(chunk.user_keys) AS people
LEFT JOIN stage_exception AS exception
  ON exception.stage_id = stage.id
 AND exception.first = (SELECT max(before.first) FROM stage_exception AS before
                        WHERE before.stage_id = stage.id AND before.first <= people.key)
 AND exception.last > people.key
WHERE stage.state = 1
"""

_POSTGRESQL = """
CREATE VIEW user_status AS
SELECT step.canvas_id AS canvas, step.name AS step, people.user_key AS user_key,
       CASE coalesce(exception.status, stage.status)
            WHEN 0 THEN 'Pending' WHEN 1 THEN 'Synced' WHEN 2 THEN 'Not Synced' ELSE 'Errored' END AS status,
       CASE WHEN exception.status IS NULL THEN stage.reason ELSE exception.reason END AS reason,
       stage.enters_us AS entered_us, stage.chunk_id AS chunk_id, people.ordinal - 1 AS ordinal
FROM stage
JOIN step ON step.id = stage.step_id
JOIN chunk ON chunk.id = stage.chunk_id
CROSS JOIN LATERAL json_array_elements_text(chunk.user_keys::json)
  WITH ORDINALITY AS people(user_key, ordinal)
LEFT JOIN (
    SELECT found.stage_id, found.status, found.reason, generate_series(found.first, found.last - 1) AS ordinal
    FROM stage_exception AS found
) AS exception ON exception.stage_id = stage.id AND exception.ordinal = people.ordinal - 1
WHERE stage.state = 1
"""

USER_STATUS = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}
