"""The log's tables, as SQLAlchemy metadata; the migrations create them, the hot path speaks SQL to them.

One SQLite file holds one log, so `log_id` is 1 there; PostgreSQL may hold several.
In PostgreSQL `entry` is partitioned by `idx`, has no index `entry_idem`, and the table `idem` (log_id, idem, idx) keeps
keys unique instead (`postgres_schema.py`): look an entry up by its key there.
Times are microseconds since 1970, UTC. Never alter `entry` or `checkpoint` in alembic's batch mode on SQLite: it
rebuilds the table and silently drops the triggers; start-up compares them with `migrate.TRIGGERS` and refuses.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

METADATA: Final = MetaData()

LOG: Final = Table(
    "log",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("origin", Text, nullable=False),
    Column("vkey", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

# `epoch` grows with every writer that takes over, `key_epoch` with every erasure; `range` is the compact range over
# `size` leaves.
HEAD: Final = Table(
    "head",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("range", LargeBinary, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("key_epoch", BigInteger, nullable=False, server_default="0"),
)

# `leaf` is the entry; every column from `idem` on is derived from it (kala/audit/columns.py) for look-ups only.
ENTRY: Final = Table(
    "entry",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("idem", LargeBinary, nullable=False),
    Column("type", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("actor", Text),
    Column("subject_key_id", Text),
    Column("trace_id", Text),
    Column("intent", LargeBinary),
    Column("rpc", Text),
    Column("tool", Text),
    Column("outcome", Text),
    Column("law", Integer),
    Column("model", Text),
    Column("backend", Text),
    Column("status", Text),
    Column("producer", Text, nullable=False),
    Column("boot", LargeBinary, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("occurred_at", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("record_digest", LargeBinary, nullable=False),
)
Index("entry_idem", ENTRY.c.log_id, ENTRY.c.idem, unique=True)
Index(
    "entry_intent",
    ENTRY.c.intent,
    sqlite_where=ENTRY.c.intent.is_not(None),
    postgresql_where=ENTRY.c.intent.is_not(None),
)
# For queries: each ends in `idx`, so that a page is read in the order of the log and no further than it needs.
for _column in ("tenant", "type"):
    Index(f"entry_by_{_column}", ENTRY.c[_column], ENTRY.c.idx)
for _column in ("trace_id", "actor", "outcome", "law", "model", "tool"):
    Index(
        f"entry_by_{_column}",
        ENTRY.c[_column],
        ENTRY.c.idx,
        sqlite_where=ENTRY.c[_column].is_not(None),
        postgresql_where=ENTRY.c[_column].is_not(None),
    )

CHECKPOINT: Final = Table(
    "checkpoint",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
)

# `ciphertext` is a flag, the key's id, nonce and AES-256-GCM of salt and plaintext (payloads.py); null after erasure.
PAYLOAD: Final = Table(
    "payload",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("ciphertext", LargeBinary),
)
Index("payload_key", PAYLOAD.c.key_id)

# A data key, wrapped by the key-encryption key; null after erasure. A subject has at most one that is not erased.
SUBJECT_KEY: Final = Table(
    "subject_key",
    METADATA,
    Column("key_id", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("wrapped", LargeBinary),
    Column("kek_id", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("erased_at", BigInteger),
)
Index(
    "subject_key_live",
    SUBJECT_KEY.c.subject,
    unique=True,
    sqlite_where=SUBJECT_KEY.c.erased_at.is_(None),
    postgresql_where=SUBJECT_KEY.c.erased_at.is_(None),
)

# C2SP tiles of 256 hashes: level 0 only when full (its growing tile is `entry.leaf_hash`), the others as they grow.
TILE: Final = Table(
    "tile",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("width", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

# Witnesses' signatures over checkpoints: `key` is the witness's verifier key, `line` its line of the note.
COSIGNATURE: Final = Table(
    "cosignature",
    METADATA,
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("line", Text, nullable=False),
)

# A hold forbids erasure and expiry of a subject's content while `released_at` is null.
LEGAL_HOLD: Final = Table(
    "legal_hold",
    METADATA,
    Column("hold_id", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("placed_at", BigInteger, nullable=False),
    Column("released_at", BigInteger),
)
Index("legal_hold_subject", LEGAL_HOLD.c.subject)

# One row per erasure that was asked for; certificate, signature and entry are null until it is finished.
ERASURE: Final = Table(
    "erasure",
    METADATA,
    Column("request_id", LargeBinary, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("erased_at", BigInteger, nullable=False),
    Column("certificate", LargeBinary),
    Column("signature", Text),
    Column("idx", BigInteger),
)

# The first index that a sink has not confirmed.
SINK_CURSOR: Final = Table(
    "sink_cursor",
    METADATA,
    Column("sink", Text, primary_key=True),
    Column("idx", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
