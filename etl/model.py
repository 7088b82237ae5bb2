"""The values that modules pass to each other: frozen, and without I/O."""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from etl.text import quote_word
from etl.type_names import check_type_name

RAW_SCHEMA = "raw"
OWN_SCHEMA = "etl"  # of the ledger, and of tables in the making
OWN_PREFIX = "_etl_"
ROW_VERSIONS = "xmin"  # in place of a watermark column: each row version tells which transaction wrote it
META_COLUMNS = ("_etl_run_id", "_etl_synced_at", "_etl_deleted_at")
MAX_RAW_COLUMNS = 1600  # the limit of PostgreSQL, which counts dropped columns
MAX_SOURCE_COLUMNS = MAX_RAW_COLUMNS - len(META_COLUMNS)


NullWatermarks = Literal["read", "refuse"]
Deletes = Literal["reconcile", "none"]
OnSchemaChange = Literal["evolve", "freeze"]
# Settings of a session: what is hashed before a masked value, and before the hash of that. No statement shows the key.
MASK_PADS = ("tidemark.mask_inner", "tidemark.mask_outer")
HASH_BLOCK_BYTES = 64  # of SHA-256
MaskKind = Literal["exclude", "null", "hash", "first", "constant"]
Side = Literal["source", "target"]
# Where the rows of a table's descendants by inheritance are: in raw tables of their own, or within that of the table.
DescendantRows = Literal["none", "apart", "within"]


class WatermarkKind(enum.Enum):
    """What a watermark column holds, which decides how its points are taken."""

    TIMESTAMPTZ = "timestamp with time zone"
    TIMESTAMP = "timestamp without time zone"
    DATE = "date"
    INTEGER = "integer"


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What the source sends in place of a column's values, all but NULL."""

    kind: MaskKind  # exclude: nothing, the column is left out; hash: HMAC-SHA-256 of the text, in hexadecimal digits
    characters: int = 0  # of the text, for `first`
    constant: str = ""


@dataclass(frozen=True, repr=False)
class MaskKey:
    """The secret with which columns are hashed; no text of it shows it."""

    secret: str

    def pads(self) -> tuple[str, str]:
        """Return what is hashed before a value, and before the hash of that, in hexadecimal digits (RFC 2104)."""
        key = self.secret.encode()
        key = (hashlib.sha256(key).digest() if len(key) > HASH_BLOCK_BYTES else key).ljust(HASH_BLOCK_BYTES, b"\0")
        inner, outer = (bytes(byte ^ pad for byte in key).hex() for pad in (0x36, 0x5C))
        return inner, outer

    def fingerprint(self) -> str:
        """Return what shows that the key is another one, and from which it cannot be found."""
        return hmac.digest(self.secret.encode(), b"tidemark", "sha256").hex()[:16]


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """How one table is replicated, as configured in tables.yml."""

    watermark: str | None = "updated_at"
    null_watermarks: NullWatermarks = "read"
    lookback_seconds: float = 0.0  # how far below a watermark that is a time to read again
    lookback_rows: int = 0  # how far below an integer watermark to read again
    deletes: Deletes = "reconcile"
    max_delete_fraction: float = 0.3  # of a table's rows, in one run
    max_delete_rows: int = 10  # up to which no fraction stops the table, unless no row would be left
    reconcile_every_hours: float = 24.0  # even when the source counts no deletes
    tombstone_days: float | None = None  # age at which tombstones that dbt has read are purged; None keeps them
    on_schema_change: OnSchemaChange = "evolve"
    batch_rows: int = 50_000
    max_rejected_rows: int = 100
    time_zone: str = "UTC"  # of watermark columns without a time zone
    key: tuple[str, ...] | None = None  # columns of a unique index; None: those of the primary key
    columns: Mapping[str, Mask] | None = None  # what must not leave the source
    where: str | None = None  # a condition on the rows to replicate, in SQL of the source
    skip: bool = False


@dataclass(frozen=True, kw_only=True)
class QualifiedName:
    """The name of an operator or collation, with its schema."""

    schema: str
    name: str


@dataclass(frozen=True, kw_only=True)
class KeyOrder:
    """How the source compares the values of a key column: as the operator class of the key's index does."""

    operators: tuple[QualifiedName, ...] | None  # <, <=, =, >= and >; None: compared as records of one column
    operand_type: str | None = None  # the type that the operators take, if the column has another one
    collation: QualifiedName | None = None  # of the key's index, if the column's type has another one


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: as it is on the source, and as it is in `raw`."""

    name: str
    number: int  # attnum on the source: another number is another column, even under the same name
    source_type: str  # as format_type() writes it on the source, schema-qualified
    raw_type: str  # the type in `raw`: enums become text, domains their base type
    is_nullable: bool
    is_cast: bool  # the SELECT casts it to raw_type
    is_binary: bool  # its binary COPY form means the same on both sides
    remark: str = ""  # why `raw` has another type, if people should know
    has_own_cast: bool = False  # its cast to text is user-defined
    key_order: KeyOrder | None = None  # of a key; None: pg_catalog's operators compare it as the key's index does
    mask: Mask | None = None
    raw_equality: QualifiedName | None = None  # the operator that compares it in `raw`; None: the `=` of pg_catalog

    def __post_init__(self) -> None:
        """Refuse a type that is not the name of one: statements contain it as it is."""
        check_type_name(self.source_type)
        check_type_name(self.raw_type)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table to replicate, as the source describes it now."""

    schema: str
    name: str
    oid: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]  # names of the columns of the primary key, in its order, or of the key in tables.yml
    watermark: str | None  # None: each run reads the row versions that the last one could not see
    watermark_kind: WatermarkKind | None
    watermark_sequence: int | None  # oid of the sequence that generates an integer watermark
    config: TableConfig
    estimated_rows: int
    filenodes: str  # identity of the table's files; changes with TRUNCATE and rewrites
    descendants: DescendantRows
    has_blocks: bool  # its rows are stored in blocks, and their versions have transaction ids
    contents: Mapping[str, str] = field(default_factory=dict)  # of each column, a hash of what gives stored rows values

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def argument(self) -> str:
        """The table's name, quoted for a shell: for commands in messages."""
        return quote_word(self.name)

    @property
    def files(self) -> str:
        """The identity of the rows to replicate: of the table's files, and of the condition in tables.yml."""
        if self.config.where is None:
            return self.filenodes
        return f"{self.filenodes} where {hashlib.sha256(self.config.where.encode()).hexdigest()[:16]}"

    @property
    def is_binary(self) -> bool:
        return all(column.is_binary for column in self.columns)

    @property
    def has_lookback(self) -> bool:
        if self.watermark_kind is WatermarkKind.INTEGER:
            return self.config.lookback_rows > 0
        return self.config.lookback_seconds > 0

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value of a watermark column, and the transactions that were open when it was taken.

    Once all of these have ended, no transaction can still commit a row below `value`.
    """

    value: str  # as text, exact
    as_of: dt.datetime  # the source's clock minus the margin; rows below `value` were stamped at or before it
    transactions: frozenset[str]  # virtual transaction ids
    server_started_at: dt.datetime  # the ids mean nothing after a restart


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What was open on the source at the last listing before the run's snapshot."""

    transactions: frozenset[str]
    has_prepared: bool
    oldest_start: dt.datetime | None  # of a transaction or active statement; None: none, or the role may not see it
    server_started_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class SourceIdentity:
    """What distinguishes one source from another; None: not known."""

    system_identifier: str | None = None  # of the cluster
    database_oid: int | None = None  # stays when the database is renamed
    database_name: str | None = None  # for people
    schema: str | None = None
    timeline: int | None = None  # grows with each promotion, and with each recovery of a backup


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An exported snapshot of the source, at which all readers of an attempt read."""

    name: str  # as pg_export_snapshot() returned it
    source: SourceIdentity
    is_standby: bool
    oldest_xid: str  # xid8: every row version written later has this transaction id or a higher one
    next_xid: str  # xid8: every transaction that had begun has a lower id
    expires_at: float  # by time.monotonic(); then progress is committed, and reading continues at a newer one
    server_started_at: str = ""  # by the source's clock

    @property
    def is_expired(self) -> bool:
        """Whether it has been held for as long as the settings allow."""
        return time.monotonic() >= self.expires_at


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a complete read of a table stood: each row version that is not older was written after its snapshot."""

    oldest_xid: str  # xid8: `oldest_xid` of the snapshot
    signature: str  # of what was read, and how


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a table stands: its watermark and the points that have not settled yet."""

    watermark: str | None = None
    column: str | None = None  # the column that the watermark belongs to
    as_of: dt.datetime | None = None  # the source's clock, minus the margin, when the watermark's point was taken
    points: tuple[Point, ...] = ()
    source: SourceIdentity = SourceIdentity()  # from which the rows of the raw table come
    next_xid: str | None = None  # xid8: `next_xid` of the newest snapshot of the source so far
    refusal: str | None = None  # why the source is refused until a person settles it
    read_mark: Mark | None = None  # of the last complete read: what it could see from the watermark on is in `raw`
    changes_counted: int | None = None  # rows that the source counted as inserted or updated, as far as runs explain it
    has_read: bool = False  # the last run read rows
    clock_ahead: float | None = None  # seconds by which the source's clock is ahead of the target's

    @property
    def latest_as_of(self) -> dt.datetime | None:
        """The source's clock at the newest point taken so far."""
        known = [instant for instant in (self.as_of, *(point.as_of for point in self.points)) if instant]
        return max(known, default=None)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of one run, in addition to the settings."""

    allow_deletes: bool = False  # accept more deleted rows than max_delete_fraction allows
    reconcile: bool = False  # compare keys even where the source counted no deletes
    full_refresh: bool = False  # reload the tables


@dataclass(frozen=True, kw_only=True)
class LoadState:
    """How far a first load in ranges of blocks has come, and what must still hold for it to continue."""

    filenodes: str
    signature: str  # of the columns and the key
    source: SourceIdentity
    next_block: int | None  # None: every range has been read
    oldest_xid: str  # xid8: every row version written since the first snapshot has this transaction id or a later one


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows and bytes of a batch or of a table; adding two gives their sum."""

    read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    rejected: int = 0
    bytes: int = 0

    @property
    def unchanged(self) -> int:
        return self.read - self.inserted - self.updated - self.rejected

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            read=self.read + other.read,
            inserted=self.inserted + other.inserted,
            updated=self.updated + other.updated,
            deleted=self.deleted + other.deleted,
            rejected=self.rejected + other.rejected,
            bytes=self.bytes + other.bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where reading of a whole table stopped, to continue in the same run at a newer snapshot.

    `progress` belongs to the first snapshot: rows before the position that have changed since then are newer than it.
    """

    after: tuple[str, ...]  # key of the last row read, as text
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far one table has come at one snapshot: complete, or to be continued at a newer one."""

    progress: Progress
    is_complete: bool = True
    position: Position | None = None
