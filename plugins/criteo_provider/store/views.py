"""One row per user and step, for people and SQL tools, on both engines.

Whoever is past the deadline with nothing else open reads as Errored at once, by the clock of the database, though no
sweep has recorded it yet: ``late`` holds the stages with such people, ``live`` what else is open in one of them.
"""

from __future__ import annotations

_LATE = "(part.state = 1 AND part.deadline_us <= clock.now_us)"
_REASON = "coalesce(part.reason, 'Criteo was never reached.')"
_COVERS = """(SELECT {what} FROM part CROSS JOIN clock CROSS JOIN {spans}
                  WHERE part.stage_id = stage.id AND {which}
                    AND {ordinal} >= {first} AND {ordinal} < {last})"""

_VIEW = """
CREATE VIEW user_status AS
WITH clock AS (SELECT {now_us} AS now_us),
late AS MATERIALIZED (
    SELECT part.stage_id, min({{reason}}) AS reason, max({{reason}}) AS other_reason
    FROM part CROSS JOIN clock
    WHERE {{given_up}} AND part.stage_id IN (
        SELECT part.stage_id FROM part CROSS JOIN clock JOIN step ON step.id = part.step_id
        WHERE {{late}} AND step.declared AND step.held_us IS NULL)
    GROUP BY part.stage_id
),
told AS (
    SELECT stage.id AS stage_id, {ordinal} AS ordinal, {user_key} AS user_key, step.canvas_id, step.name,
           stage.enters_us, stage.chunk_id, late.reason AS late_reason, late.other_reason, {own_reason} AS own_reason,
           coalesce(exception.status, stage.status) AS status,
           CASE WHEN exception.status IS NULL THEN stage.reason ELSE exception.reason END AS reason,
           coalesce(exception.status, stage.status) = 0 AND late.stage_id IS NOT NULL
             AND {alone} AS is_late
    FROM stage
    JOIN step ON step.id = stage.step_id
    JOIN chunk ON chunk.id = stage.chunk_id
    {people}
    LEFT JOIN late ON late.stage_id = stage.id
    {live}
    WHERE stage.state = 1
)
SELECT told.canvas_id AS canvas, told.name AS step, told.user_key AS user_key,
       CASE WHEN told.is_late THEN 'Errored' WHEN told.status = 0 THEN 'Pending' WHEN told.status = 1 THEN 'Synced'
            WHEN told.status = 2 THEN 'Not Synced' ELSE 'Errored' END AS status,
       CASE WHEN NOT told.is_late THEN told.reason
            WHEN told.late_reason = told.other_reason THEN told.late_reason
            ELSE {last_reason} END AS reason,
       told.enters_us AS entered_us, told.chunk_id AS chunk_id, told.ordinal AS ordinal
FROM told
"""

_OPEN = "part.state <= 2 AND (part.state <> 1 OR part.deadline_us IS NULL OR part.deadline_us > clock.now_us)"
_GIVEN_UP = f"(part.state = 5 OR {_LATE})"


def _covers(what: str, which: str, ordinal: str, spans: str, first: str, last: str) -> str:
    return _COVERS.format(what=what, which=which, ordinal=ordinal, spans=spans, first=first, last=last)


def _view(**pieces: str) -> str:
    """Fit pieces of one engine in, then the conditions that view and pieces share."""
    return _VIEW.format(**pieces).format(late=_LATE, open=_OPEN, given_up=_GIVEN_UP, reason=_REASON)


_SQLITE_SPANS = (
    "json_each(part.spans) AS held",
    "json_extract(held.value, '$[0]')",
    "json_extract(held.value, '$[1]')",
)


USER_STATUS = {
    # SQLite seeks the one exception that could hold the ordinal: 0.5 µs a user. PostgreSQL spreads what is said of the
    # people of a stage over their ordinals, stage by stage, so that each hash it joins by is small.
    "sqlite": _view(
        now_us="(julianday('now') - 2440587.5) * 86400000000.0",
        user_key="people.value",
        ordinal="people.key",
        people="""JOIN json_each(chunk.user_keys) AS people
    LEFT JOIN stage_exception AS exception
      ON exception.stage_id = stage.id
     AND exception.first = (SELECT max(before.first) FROM stage_exception AS before
                            WHERE before.stage_id = stage.id AND before.first <= people.key)
     AND exception.last > people.key""",
        live="""LEFT JOIN (
        SELECT DISTINCT part.stage_id FROM late JOIN part ON part.stage_id = late.stage_id CROSS JOIN clock
        WHERE {open}
    ) AS live ON live.stage_id = stage.id""",
        alone=f"(live.stage_id IS NULL OR NOT EXISTS {_covers('1', _OPEN, 'people.key', *_SQLITE_SPANS)})",
        own_reason="NULL",
        # Asked for here, behind the question who is late.
        last_reason=_covers(f"min({_REASON})", _GIVEN_UP, "told.ordinal", *_SQLITE_SPANS).replace(
            "stage.id", "told.stage_id"
        ),
    ),
    "postgresql": _view(
        now_us="(extract(epoch FROM statement_timestamp()) * 1000000)::bigint",
        user_key="people.user_key",
        ordinal="(people.ordinal - 1)",
        people="""CROSS JOIN LATERAL json_array_elements_text(chunk.user_keys::json)
      WITH ORDINALITY AS people(user_key, ordinal)
    LEFT JOIN LATERAL (
        SELECT found.status, found.reason, generate_series(found.first, found.last - 1) AS ordinal
        FROM stage_exception AS found WHERE found.stage_id = stage.id
    ) AS exception ON exception.ordinal = people.ordinal - 1""",
        live="""LEFT JOIN LATERAL (
        SELECT held.ordinal, bool_or(held.is_open) AS is_open, min(held.reason) AS reason
        FROM (
            SELECT {open} AS is_open, CASE WHEN {given_up} THEN {reason} END AS reason,
                   generate_series((span.value ->> 0)::int, (span.value ->> 1)::int - 1) AS ordinal
            FROM part CROSS JOIN clock CROSS JOIN LATERAL json_array_elements(part.spans::json) AS span
            WHERE part.stage_id = late.stage_id AND ({open} OR ({given_up} AND late.reason <> late.other_reason))
        ) AS held
        GROUP BY held.ordinal
    ) AS live ON live.ordinal = people.ordinal - 1""",
        alone="live.is_open IS NOT TRUE",
        own_reason="live.reason",
        last_reason="told.own_reason",
    ),
}
