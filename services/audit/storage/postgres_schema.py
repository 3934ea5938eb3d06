"""What only PostgreSQL's schema has: partitions, the table of keys, triggers as functions, and roles.

Entries lie in partitions by index, so that old ones can be dropped whole. Their unique index cannot cover keys alone,
so `idem` keeps them unique. Triggers refuse UPDATE, DELETE and TRUNCATE of entries and checkpoints to everyone, the
owner included; `ENABLE ALWAYS` keeps them on when a session calls itself a replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Entries of one partition: what retention drops at once. A multiple of 256, so that no tile spans two.
PARTITION_WIDTH: Final = 1 << 20

# The version table is not alembic's usual one: other services may keep theirs in the same database.
VERSION_TABLE: Final = "audit_version"

_REFUSE_BODY: Final = "\nBEGIN\n    RAISE EXCEPTION 'the rows of % are never changed', TG_ARGV[0] USING ERRCODE = '23001';\nEND\n"
_TABLES: Final = ("entry", "checkpoint")
# The triggers of a guarded table, with what pg_trigger says of their events (pg_trigger.h: ROW 1, BEFORE 2, DELETE 8,
# UPDATE 16, TRUNCATE 32).
_EVENTS: Final = {"no_update": 1 + 2 + 16, "no_delete": 1 + 2 + 8, "no_truncate": 2 + 32}


def _guard(table: str) -> tuple[str, ...]:
    """Statements that put the three triggers on a table."""
    call = f"EXECUTE FUNCTION audit_refuse_change('{table}')"
    return (
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} FOR EACH ROW {call}",
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} FOR EACH ROW {call}",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {call}",
        *(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_{event}" for event in _EVENTS),
    )


# Row triggers of a partitioned table are cloned to each partition; one for TRUNCATE is not, and a partition can be
# truncated by itself. The writer's role may call this and cannot otherwise create a table. Attaching, unlike creating
# in place, locks no reader and no writer out.
_EXTEND: Final = """
CREATE FUNCTION audit_extend_entry(upto bigint, width bigint) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    bound bigint;
    part text;
BEGIN
    IF width < 256 OR width % 256 <> 0 THEN
        RAISE EXCEPTION 'a partition holds whole tiles: its width is a multiple of 256';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('kala.audit.extend_entry', 0));
    SELECT coalesce(max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''(\\d+)''\\)')::bigint), 0)
        INTO bound FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = 'entry'::regclass;
    WHILE bound <= upto LOOP
        part := 'entry_' || bound;
        EXECUTE format('CREATE TABLE %I (LIKE entry INCLUDING DEFAULTS INCLUDING STORAGE)', part);
        EXECUTE format('ALTER TABLE entry ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', part, bound, bound + width);
        EXECUTE format('CREATE TRIGGER entry_no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
                       'EXECUTE FUNCTION audit_refuse_change(''entry'')', part);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER entry_no_update, '
                       'ENABLE ALWAYS TRIGGER entry_no_delete, ENABLE ALWAYS TRIGGER entry_no_truncate', part);
        bound := bound + width;
    END LOOP;
    RETURN bound;
END
$$
"""

# A function that runs with its owner's rights must not look names up where its caller may put some.
_PIN_PATH: Final = """
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION audit_extend_entry(bigint, bigint) SET search_path = %I, pg_temp', current_schema());
END $$
"""

# After `entry`, `head` and `checkpoint` exist.
CREATE: Final = (
    "CREATE TABLE idem (log_id integer, idem bytea, idx bigint NOT NULL, PRIMARY KEY (log_id, idem))",
    # The one row that every transaction updates: room for its versions in its own page.
    "ALTER TABLE head SET (fillfactor = 20)",
    f"CREATE FUNCTION audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $${_REFUSE_BODY}$$",
    *(statement for table in _TABLES for statement in _guard(table)),
    _EXTEND,
    _PIN_PATH,
    "REVOKE ALL ON FUNCTION audit_extend_entry(bigint, bigint) FROM PUBLIC",
    f"SELECT audit_extend_entry({PARTITION_WIDTH - 1}, {PARTITION_WIDTH})",
)

SELECT_TRIGGERS: Final = """
SELECT c.relname, t.tgname, t.tgtype, t.tgenabled::text, p.proname, p.prosrc
FROM pg_class AS c
LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal
LEFT JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE c.oid IN (SELECT 'entry'::regclass UNION SELECT 'checkpoint'::regclass
                UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = 'entry'::regclass)
"""

# (table, trigger, events, enabled, function, body); nulls for a table without triggers.
TriggerRow = tuple[str, str | None, int | None, str | None, str | None, str | None]


def wrong_triggers(rows: list[TriggerRow]) -> list[str]:
    """The triggers that are missing, changed or not ours, by name; none on a log as the migrations made it."""
    found = {(row[0], row[1]): row[2:] for row in rows if row[1] is not None}
    expected: dict[tuple[str, str], tuple[int, str, str, str]] = {}
    for relation in {row[0] for row in rows}:
        table = "checkpoint" if relation == "checkpoint" else "entry"
        for name, events in _EVENTS.items():
            expected[relation, f"{table}_{name}"] = (events, "A", "audit_refuse_change", _REFUSE_BODY)
    keys = found.keys() | expected.keys()
    return sorted(f"{key[1]} of {key[0]}" for key in keys if found.get(key) != expected.get(key))


# Tables that must survive a crash of the server: an unlogged one is emptied by it.
SELECT_UNLOGGED: Final = """
SELECT c.relname FROM pg_class AS c
WHERE c.relpersistence <> 'p' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'entry'::regclass)
  AND (c.relname = ANY(%s) OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'entry'::regclass))
"""

WRITER: Final = "kala_audit_writer"
READER: Final = "kala_audit_reader"
ERASER: Final = "kala_audit_eraser"
ROLES: Final = (WRITER, READER, ERASER)

# What each role may do, by table. Nobody may update or delete entries or checkpoints.
# The reader is for people and their tools: it sees the log, never the stored content or its keys.
GRANTS: Final[Mapping[str, Mapping[str, str]]] = {
    "log": {WRITER: "SELECT, INSERT, UPDATE (vkey)", READER: "SELECT", ERASER: "SELECT"},
    "head": {
        WRITER: 'SELECT, INSERT, UPDATE (size, "range", root, recorded_at)',
        READER: "SELECT",
        ERASER: "SELECT, UPDATE (key_epoch)",
    },
    "entry": {WRITER: "SELECT, INSERT", READER: "SELECT", ERASER: "SELECT"},
    "idem": {WRITER: "SELECT, INSERT", READER: "SELECT", ERASER: "SELECT"},
    "checkpoint": {WRITER: "SELECT, INSERT", READER: "SELECT", ERASER: "SELECT"},
    "tile": {WRITER: "SELECT, INSERT, UPDATE (width, data)", READER: "SELECT", ERASER: "SELECT"},
    "cosignature": {WRITER: "SELECT, INSERT, DELETE", READER: "SELECT", ERASER: "SELECT"},
    "payload": {WRITER: "SELECT, INSERT", ERASER: "SELECT, UPDATE (ciphertext)"},
    "subject_key": {WRITER: "SELECT, INSERT", ERASER: "SELECT, UPDATE (wrapped, erased_at)"},
    "legal_hold": {WRITER: "SELECT", READER: "SELECT", ERASER: "SELECT, INSERT, UPDATE"},
    "erasure": {WRITER: "SELECT", READER: "SELECT", ERASER: "SELECT, INSERT, UPDATE"},
    "sink_cursor": {WRITER: "SELECT, INSERT, UPDATE", READER: "SELECT"},
    "agent_run": {WRITER: "SELECT", READER: "SELECT"},
    "agent_run_status": {WRITER: "SELECT", READER: "SELECT"},
    VERSION_TABLE: {WRITER: "SELECT", READER: "SELECT", ERASER: "SELECT"},
}


def role_statements(relations: set[str]) -> list[str]:
    """Makes the roles where they are missing, and gives each exactly its rights on these tables and views."""
    statements = [
        f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        for role in ROLES
    ]
    for table in sorted(relations & GRANTS.keys()):
        statements.append(f"REVOKE ALL ON {table} FROM {', '.join(ROLES)}")
        statements += [f"GRANT {rights} ON {table} TO {role}" for role, rights in GRANTS[table].items()]
    statements.append(f"GRANT EXECUTE ON FUNCTION audit_extend_entry(bigint, bigint) TO {WRITER}")
    return statements
