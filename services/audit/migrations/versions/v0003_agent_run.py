"""Adds the view `agent_run`, in which every backend's and tool's run is one row, computed from the leaves.

`agent_run_status` is the part of it that needs no JSON of most leaves, for counts over many entries.
A run is ok when nothing is to be said against it: `violations_json` is then `[]`, and only then.
"""

from __future__ import annotations

from typing import Final

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Leaves are canonical JSON, in which only a failed attempt can spell this: a quote inside of text is escaped.
_FAILED: Final = b'"outcome":"failed"'.hex()

_SQLITE_KIND: Final = (
    "CASE WHEN {name} LIKE 'backends/lmstudio%' THEN 'lm_studio' ELSE "
    "substr({name} || '-', 10, instr(substr({name} || '-', 10), '-') - 1) END"
)
_SQLITE_STATUS: Final = f"""
CREATE VIEW agent_run_status AS
SELECT log_id, idx, 0 AS attempt, recorded_at, type, tenant, actor, trace_id, outcome, law, model,
       {_SQLITE_KIND.format(name="backend")} AS tool,
       CASE status WHEN 'ok' THEN 'ok' ELSE 'error' END AS status
FROM entry
WHERE substr(type, -8) = '.outcome' AND tool IS NULL AND backend IS NOT NULL AND instr(leaf, x'{_FAILED}') = 0
UNION ALL
SELECT log_id, idx, tried.key, recorded_at, entry.type, tenant, actor, trace_id, outcome, law, model,
       {_SQLITE_KIND.format(name="json_extract(tried.value, '$.backend')")},
       CASE WHEN json_extract(tried.value, '$.outcome') = 'ok' AND status = 'ok' THEN 'ok' ELSE 'error' END
FROM entry, json_each(CAST(leaf AS TEXT), '$.result.attempts') AS tried
WHERE substr(entry.type, -8) = '.outcome' AND tool IS NULL AND instr(leaf, x'{_FAILED}') > 0
UNION ALL
SELECT log_id, idx, 0, recorded_at, type, tenant, actor, trace_id, outcome, law, model, tool,
       CASE WHEN status = 'ok' AND json_extract(CAST(leaf AS TEXT), '$.result.code') IS NULL
            THEN 'ok' ELSE 'error' END
FROM entry
WHERE substr(type, -8) IN ('.outcome', '.refused') AND tool IS NOT NULL
"""  # noqa: S608 - constants only

_SQLITE_RUN: Final = """
CREATE VIEW agent_run AS
WITH read AS (
    SELECT run.*, CAST(entry.leaf AS TEXT) AS doc,
           '$.result.attempts[' || attempt || ']' AS place,
           (SELECT json_group_object(json_extract(fact.value, '$[0]'), json_extract(fact.value, '$[1]'))
            FROM json_each(CAST(entry.leaf AS TEXT), '$.attributes') AS fact) AS facts
    FROM agent_run_status AS run JOIN entry ON entry.log_id = run.log_id AND entry.idx = run.idx
), taken AS (
    SELECT *, coalesce(json_extract(doc, place || '.outcome'), 'ok') = 'ok' AS has_answered,
           CASE WHEN json_valid(json_extract(facts, '$."call.latency_ms"'))
                THEN json_extract(json_extract(facts, '$."call.latency_ms"'), '$[' || attempt || ']')
           END AS latency_ms,
           json_extract(doc, '$.result.output_tokens') AS output_tokens
    FROM read
)
SELECT log_id, idx, attempt, recorded_at, type, tenant, actor, trace_id, outcome, law, model, tool, status,
       json_object(
           'model', coalesce(json_extract(doc, place || '.model'), model),
           'prompt_length', CAST(json_extract(facts, '$."call.prompt_length"') AS INTEGER),
           'temperature', CAST(json_extract(facts, '$."call.temperature"') AS REAL),
           'max_tokens', CAST(json_extract(facts, '$."call.max_tokens"') AS INTEGER)
       ) AS args_json,
       json_object(
           'response_length',
           CASE WHEN has_answered THEN CAST(json_extract(facts, '$."call.response_length"') AS INTEGER) END,
           'latency_ms', latency_ms,
           'tokens_per_second',
           CASE WHEN has_answered AND latency_ms > 0 THEN round(output_tokens * 1000.0 / latency_ms, 3) END
       ) AS result_json,
       CASE WHEN status = 'ok' THEN json_array() WHEN NOT has_answered THEN json_array(json_object(
           'status', 'error', 'code', json_extract(doc, place || '.reason'), 'law', NULL, 'category', NULL
       )) ELSE json_array(json_object(
           'status', replace(json_extract(doc, '$.result.status'), 'ok', 'error'),
           'code', coalesce(json_extract(doc, '$.result.code'), outcome),
           'law', CASE json_extract(doc, '$.result.status') WHEN 'refused' THEN law END,
           'category', CASE json_extract(doc, '$.result.status') WHEN 'refused'
                       THEN json_extract(doc, '$.decision.category') END
       )) END AS violations_json
FROM taken
"""

# PostgreSQL reads no NUL out of JSON, and a backend may have put one into a name: it is shown as U+FFFD.
_POSTGRES_DOC: Final = r"replace(convert_from(leaf, 'UTF8'), '\u0000', '\ufffd')::json"
_POSTGRES_KIND: Final = (
    "CASE WHEN starts_with({name}, 'backends/lmstudio') THEN 'lm_studio' "
    "ELSE split_part(substr({name}, 10), '-', 1) END"
)
_POSTGRES_STATUS: Final = f"""
CREATE VIEW agent_run_status AS
SELECT log_id, idx, 0 AS attempt, recorded_at, type, tenant, actor, trace_id, outcome, law, model,
       {_POSTGRES_KIND.format(name="backend")} AS tool,
       CASE status WHEN 'ok' THEN 'ok' ELSE 'error' END AS status
FROM entry
WHERE right(type, 8) = '.outcome' AND tool IS NULL AND backend IS NOT NULL
  AND position('\\x{_FAILED}'::bytea IN leaf) = 0
UNION ALL
SELECT log_id, idx, (tried.number - 1)::integer, recorded_at, type, tenant, actor, trace_id, outcome, law, model,
       {_POSTGRES_KIND.format(name="tried.value ->> 'backend'")},
       CASE WHEN tried.value ->> 'outcome' = 'ok' AND status = 'ok' THEN 'ok' ELSE 'error' END
FROM entry CROSS JOIN LATERAL
     json_array_elements({_POSTGRES_DOC} -> 'result' -> 'attempts') WITH ORDINALITY AS tried(value, number)
WHERE right(type, 8) = '.outcome' AND tool IS NULL AND position('\\x{_FAILED}'::bytea IN leaf) > 0
UNION ALL
SELECT log_id, idx, 0, recorded_at, type, tenant, actor, trace_id, outcome, law, model, tool,
       CASE WHEN status = 'ok' AND {_POSTGRES_DOC} -> 'result' ->> 'code' IS NULL THEN 'ok' ELSE 'error' END
FROM entry
WHERE right(type, 8) IN ('.outcome', '.refused') AND tool IS NOT NULL
"""  # noqa: S608 - constants only

_INTEGER: Final = "'^[0-9]{1,15}$'"
_POSTGRES_RUN: Final = f"""
CREATE VIEW agent_run AS
WITH read AS (
    SELECT run.*, entry.doc, entry.doc -> 'result' -> 'attempts' -> run.attempt AS tried, facts.*
    FROM agent_run_status AS run
    JOIN (SELECT log_id, idx, {_POSTGRES_DOC} AS doc FROM entry) AS entry
      ON entry.log_id = run.log_id AND entry.idx = run.idx
    CROSS JOIN LATERAL (
        SELECT max(fact ->> 1) FILTER (WHERE fact ->> 0 = 'call.prompt_length') AS prompt_length,
               max(fact ->> 1) FILTER (WHERE fact ->> 0 = 'call.temperature') AS temperature,
               max(fact ->> 1) FILTER (WHERE fact ->> 0 = 'call.max_tokens') AS max_tokens,
               max(fact ->> 1) FILTER (WHERE fact ->> 0 = 'call.response_length') AS response_length,
               max(fact ->> 1) FILTER (WHERE fact ->> 0 = 'call.latency_ms') AS latencies
        FROM json_array_elements(entry.doc -> 'attributes') AS fact
    ) AS facts
), taken AS (
    SELECT *, coalesce(tried ->> 'outcome', 'ok') = 'ok' AS has_answered,
           CASE WHEN latencies ~ '^\\[[0-9]{{1,15}}(,[0-9]{{1,15}})*\\]$'
                THEN (latencies::json ->> attempt)::bigint END AS latency_ms,
           (doc -> 'result' ->> 'output_tokens')::bigint AS output_tokens,
           doc -> 'result' ->> 'status' AS ending
    FROM read
)
SELECT log_id, idx, attempt, recorded_at, type, tenant, actor, trace_id, outcome, law, model, tool, status,
       json_build_object(
           'model', coalesce(tried ->> 'model', model),
           'prompt_length', CASE WHEN prompt_length ~ {_INTEGER} THEN prompt_length::bigint END,
           'temperature', CASE WHEN temperature ~ '^[0-9]+(\\.[0-9]+)?(e-?[0-9]{{1,2}})?$' THEN temperature::float8 END,
           'max_tokens', CASE WHEN max_tokens ~ {_INTEGER} THEN max_tokens::bigint END
       ) AS args_json,
       json_build_object(
           'response_length',
           CASE WHEN has_answered AND response_length ~ {_INTEGER} THEN response_length::bigint END,
           'latency_ms', latency_ms,
           'tokens_per_second',
           CASE WHEN has_answered AND latency_ms > 0
                THEN round(output_tokens * 1000.0 / latency_ms, 3)::float8 END
       ) AS result_json,
       CASE WHEN status = 'ok' THEN json_build_array() WHEN NOT has_answered THEN json_build_array(json_build_object(
           'status', 'error', 'code', tried ->> 'reason', 'law', NULL, 'category', NULL
       )) ELSE json_build_array(json_build_object(
           'status', CASE ending WHEN 'ok' THEN 'error' ELSE ending END,
           'code', coalesce(doc -> 'result' ->> 'code', outcome),
           'law', CASE ending WHEN 'refused' THEN law END,
           'category', CASE ending WHEN 'refused' THEN doc -> 'decision' ->> 'category' END
       )) END AS violations_json
FROM taken
"""  # noqa: S608 - constants only

VIEWS: Final = {"sqlite": (_SQLITE_STATUS, _SQLITE_RUN), "postgresql": (_POSTGRES_STATUS, _POSTGRES_RUN)}


def upgrade() -> None:
    """Creates the views."""
    bind = op.get_bind()
    for view in VIEWS[bind.dialect.name]:
        bind.exec_driver_sql(view)
