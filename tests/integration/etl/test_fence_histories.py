"""The fence over whole histories: generated ones against a model, and writers that really work at the same time.

`History` plays transactions one step at a time, also in the middle of a run, and knows which rows are committed.
After a run, `raw` holds exactly the rows that were committed when the run took its snapshot.
The same tests, with `max()` in place of the fence, have to fail: that shows what they are able to see.
"""

import dataclasses
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from psycopg2.extras import wait_select

import etl
from etl.source import open_transactions

ZONE = "Europe/Rome"
LOCAL_NOW = f"(now() at time zone '{ZONE}')"
# Tables with the type of their watermark column and, where it is a time, what a writer stamps a row with.
STAMPED = {
    "instants": ("timestamptz", "now()"),
    "clocks": ("timestamp", LOCAL_NOW),
    "days": ("date", f"{LOCAL_NOW}::date"),
}
NUMBERED = {"numbers": "integer", "large_numbers": "bigint"}  # append only: an update leaves the number
TABLES = (*STAMPED, *NUMBERED)
SLOTS = 3
MAX_PREPARED = 3  # the server allows ten
UPDATE = "update {table} set note = %s, updated_at = {stamp} where id = {row}"


def make_tables(replication):
    for name, (kind, stamp) in STAMPED.items():
        replication.on_source(
            f"create table {name} (id bigint generated always as identity primary key, note text not null, "
            f"updated_at {kind} not null default {stamp}); create index on {name} (updated_at)"
        )
    for name, kind in NUMBERED.items():
        replication.on_source(
            f"create table {name} (id {kind} generated always as identity primary key, note text not null)"
        )
    configure(replication, batch_rows=1000)


def configure(replication, batch_rows):
    tables = {name: {"time_zone": ZONE} for name in STAMPED} | {name: {"watermark": "id"} for name in NUMBERED}
    replication.configure({"defaults": {"batch_rows": batch_rows}, "tables": tables})


def digits(number, *sizes):
    """Split a drawn number into choices, each below its size."""
    choices = []
    for size in sizes:
        number, choice = divmod(number, size)
        choices.append(choice)
    return choices


class Message:
    """Two transactions in one message, each stopped before its commit by a gate, an advisory lock.

    Both have the message's now(), though the second begins only once the first has ended.
    """

    TEXT = (
        "begin; insert into instants (note) values (%s); select pg_advisory_xact_lock(1); commit; "
        "begin; insert into instants (note) values (%s); select pg_advisory_xact_lock(2); commit"
    )

    def __init__(self, replication, wait_until):
        self._on_source = replication.on_source
        self._wait_until = wait_until
        self._connection = psycopg2.connect(replication.source_url, async_=1)
        wait_select(self._connection)
        self._cursor = self._connection.cursor()
        self._on_source("select pg_advisory_lock(1), pg_advisory_lock(2)")
        self.notes = []  # of the transactions that have not committed yet

    def send(self, notes):
        self._cursor.execute(self.TEXT, notes)
        self.notes = list(notes)
        self._wait_at_gate(1)

    def open_gate(self):
        """Let the transaction that waits commit; return the note of its row."""
        gate = 3 - len(self.notes)
        self._on_source("select pg_advisory_unlock(%s)", gate)
        if gate == 1:
            self._wait_at_gate(2)
        else:
            wait_select(self._connection)
        self._on_source("select pg_advisory_lock(%s)", gate)
        return self.notes.pop(0)

    def close(self):
        self._connection.close()

    def _wait_at_gate(self, gate):
        waiting = (
            "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = %s"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        self._wait_until(lambda: self._on_source(waiting, gate) == [(1,)])


@dataclasses.dataclass
class Slot:
    """A session with at most one open transaction."""

    cursor: object
    is_open: bool = False
    rows: dict = dataclasses.field(default_factory=dict)  # (table, id) to note, as the open transaction wrote them
    runs_before: int = 0  # when the transaction began


class History:
    """Transactions on the source, and the rows that are committed: (table, id) to note.

    Every step takes a drawn number that decides between sessions, tables and rows; a step that cannot be made now
    does nothing. No step waits for another's lock, so one thread plays all sessions.
    """

    def __init__(self, replication, wait_until):
        self.replication = replication
        self.slots = [Slot(self._open_session()) for _ in range(SLOTS)]
        self.message = Message(replication, wait_until)
        self.sends_messages = True
        self.tally = Counter()
        self.committed = {}
        self.prepared = {}  # global id to the rows written
        self.interruptions = {}  # of the run at work: its moment to steps
        self.moment = 0
        self.rows_at_snapshot = None

    def reset(self):
        """End what is open and empty both sides, for the next history."""
        self.finish()
        self.replication.on_source(f"truncate {', '.join(TABLES)} restart identity")
        self.replication.on_target("drop schema if exists raw, etl cascade")
        self.committed = {}
        self.tally["histories"] += 1

    def finish(self):
        """Commit everything that is open."""
        while self.message.notes:
            self.open_gate(0)
        for number in range(SLOTS):
            self.commit(number)
        while self.prepared:
            self.finish_prepared(0)

    def close(self):
        self.finish()
        self.message.close()
        for slot in self.slots:
            slot.cursor.connection.close()

    # Steps

    def begin(self, number):
        """Begin a transaction that only reads: its now() is taken, and it may write later."""
        self._begin(self.slots[number % SLOTS])

    def write(self, number):
        """Insert or update a row in a transaction, which begins here unless it is open."""
        slot_number, rest = number % SLOTS, number // SLOTS
        slot = self.slots[slot_number]
        self._begin(slot)
        row, note = self._write(slot.cursor, rest, own=slot.rows)
        slot.rows[row] = note

    def write_in_savepoint(self, number):
        """Write in a savepoint that is rolled back: its number of a sequence is used up."""
        slot_number, rest = number % SLOTS, number // SLOTS
        slot = self.slots[slot_number]
        self._begin(slot)
        slot.cursor.execute("savepoint here")
        self._write(slot.cursor, rest, own=slot.rows)
        slot.cursor.execute("rollback to savepoint here")

    def write_alone(self, number):
        """Write a row in a transaction of its own."""
        with self.replication.source.cursor() as cursor:
            row, note = self._write(cursor, number, own={})
        self._count("committed", {row: note})

    def commit(self, number):
        slot = self.slots[number % SLOTS]
        if slot.is_open:
            slot.cursor.execute("commit")
            self._commit(slot)

    def chain(self, number):
        """Commit, and begin the next transaction in the same statement."""
        slot = self.slots[number % SLOTS]
        if slot.is_open:
            slot.cursor.execute("commit and chain")
            self._commit(slot)
            slot.is_open, slot.runs_before = True, self.tally["runs"]

    def roll_back(self, number):
        slot = self.slots[number % SLOTS]
        if slot.is_open:
            slot.cursor.execute("rollback")
            self._count("rolled back", {})
            slot.is_open, slot.rows = False, {}

    def prepare(self, number):
        slot = self.slots[number % SLOTS]
        if slot.is_open and len(self.prepared) < MAX_PREPARED:
            self.tally["prepared"] += 1
            global_id = f"{slot.cursor.connection.info.dbname} {self.tally['prepared']}"
            slot.cursor.execute("prepare transaction %s", (global_id,))
            self.prepared[global_id] = slot.rows
            slot.is_open, slot.rows = False, {}

    def finish_prepared(self, number):
        """Commit a prepared transaction, or now and then roll it back."""
        if not self.prepared:
            return
        chosen, is_lost = digits(number, len(self.prepared), 4)
        global_id = list(self.prepared)[chosen]
        rows = self.prepared.pop(global_id)
        self.replication.on_source(f"{'rollback' if is_lost == 3 else 'commit'} prepared %s", global_id)
        self._count("rolled back" if is_lost == 3 else "committed", {} if is_lost == 3 else rows)

    def send_message(self, _):
        if self.sends_messages and not self.message.notes:
            self.message.send([self._next_note(), self._next_note()])

    def open_gate(self, _):
        if self.message.notes:
            note = self.message.open_gate()
            ((row_id,),) = self.replication.on_source("select id from instants where note = %s", note)
            self._count("committed", {("instants", row_id): note})

    # Runs

    def run(self, tables=(), *, interruptions=(), is_cut=False):
        """Run, with steps at moments of the run, and compare.

        With `is_cut` the snapshot may be held for one batch only; then what interrupts a run may or may not be in it.
        """
        self.tally["runs"] += 1
        self.moment, self.rows_at_snapshot, self.interruptions = 0, None, {}
        for moment, step, number in interruptions:
            self.interruptions.setdefault(moment, []).append((step, number))
        changes = {"max_snapshot_seconds": 0.0} if is_cut else {}
        result = etl.run(dataclasses.replace(self.replication.settings, **changes), tables, observe=self._observe)
        assert [table.error for table in result.tables if table.status != "succeeded"] == []
        if not (is_cut and interruptions):
            self._compare(tables or TABLES)

    def reach_moment(self):
        """Make the steps that are due now; called before and after each listing, and while tables are read."""
        for step, number in self.interruptions.pop(self.moment, ()):
            getattr(self, step)(number)
        self.moment += 1

    def compare_as_text(self):
        for table in TABLES:
            source, raw = self.replication.rows(table)
            assert source == raw

    def _observe(self, event):
        if event.kind == "table_started" and self.rows_at_snapshot is None:
            self.rows_at_snapshot = dict(self.committed)
        if event.kind in ("table_started", "batch_committed"):
            self.reach_moment()

    def _compare(self, tables):
        each = " union all ".join(f"select '{table}', id, note from raw.{table}" for table in tables)
        found = {(table, row_id): note for table, row_id, note in self.replication.on_target(each)}
        expected = {row: note for row, note in self.rows_at_snapshot.items() if row[0] in tables}
        assert expected == found

    # What steps are made of

    def _open_session(self):
        connection = self.replication.open_source()
        connection.autocommit = True
        return connection.cursor()

    def _begin(self, slot):
        if not slot.is_open:
            slot.cursor.execute("begin")
            slot.cursor.execute("select count(*) from instants")
            slot.is_open, slot.runs_before = True, self.tally["runs"]

    def _commit(self, slot):
        self._count("committed", slot.rows)
        if slot.rows and slot.runs_before < self.tally["runs"]:
            self.tally["committed after a run"] += 1
        slot.is_open, slot.rows = False, {}

    def _count(self, how, rows):
        self.committed.update(rows)
        self.tally["transactions"] += 1
        self.tally[f"transactions {how}"] += 1
        self.tally["rows"] += len(rows)

    def _next_note(self):
        self.tally["writes"] += 1
        return f"note {self.tally['writes']}"

    def _write(self, cursor, number, own):
        """Write a row that no other open transaction has touched; return it with its note."""
        place, is_update, chosen = digits(number, len(TABLES), 2, 1000)
        table, note = TABLES[place], self._next_note()
        rows = self._free_rows(table, own) if is_update and table in STAMPED else []
        if rows:
            row = rows[chosen % len(rows)]
            cursor.execute(UPDATE.format(table=table, stamp=STAMPED[table][1], row="%s"), (note, row[1]))
            return row, note
        cursor.execute(f"insert into {table} (note) values (%s) returning id", (note,))
        return (table, cursor.fetchone()[0]), note

    def _free_rows(self, table, own):
        open_rows = [slot.rows for slot in self.slots] + list(self.prepared.values())
        taken = {row for rows in open_rows if rows is not own for row in rows}
        return [row for row in {**self.committed, **own} if row[0] == table and row not in taken]


STEPS = (
    "begin",
    "write",
    "write_in_savepoint",
    "write_alone",
    "commit",
    "chain",
    "roll_back",
    "prepare",
    "finish_prepared",
    "send_message",
    "open_gate",
)
NUMBERS = st.integers(min_value=0, max_value=2**16 - 1)
# Before and after the first listing 0 and 1, the second 2 and 3, then tables that start and batches that commit.
MOMENTS = st.integers(min_value=0, max_value=6)
INTERRUPTIONS = st.lists(st.tuples(MOMENTS, st.sampled_from(STEPS), NUMBERS), min_size=1, max_size=5)


class Histories(RuleBasedStateMachine):
    """Draws histories: the rules are the steps of `History`, and runs."""

    def __init__(self, history):
        super().__init__()
        self.history = history
        history.reset()

    @initialize(batch_rows=st.sampled_from([2, 3, 1000]))
    def choose_batches(self, batch_rows):
        configure(self.history.replication, batch_rows)

    @rule(number=NUMBERS)
    def begin(self, number):
        self.history.begin(number)

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=4))
    def write(self, numbers):
        for number in numbers:
            self.history.write(number)

    @rule(number=NUMBERS)
    def write_in_savepoint(self, number):
        self.history.write_in_savepoint(number)

    @rule(number=NUMBERS)
    def write_alone(self, number):
        self.history.write_alone(number)

    @precondition(lambda self: self.has_open())
    @rule(number=NUMBERS)
    def commit(self, number):
        self.history.commit(number)

    @precondition(lambda self: self.has_open())
    @rule(number=NUMBERS)
    def chain(self, number):
        self.history.chain(number)

    @precondition(lambda self: self.has_open())
    @rule(number=NUMBERS)
    def roll_back(self, number):
        self.history.roll_back(number)

    @precondition(lambda self: self.has_open())
    @rule(number=NUMBERS)
    def prepare(self, number):
        self.history.prepare(number)

    @precondition(lambda self: self.history.prepared)
    @rule(number=NUMBERS)
    def finish_prepared(self, number):
        self.history.finish_prepared(number)

    @precondition(lambda self: self.history.sends_messages and not self.history.message.notes)
    @rule()
    def send_message(self):
        self.history.send_message(0)

    @precondition(lambda self: self.history.message.notes)
    @rule()
    def open_gate(self):
        self.history.open_gate(0)

    @rule()
    def pass_time(self):
        self.history.replication.on_source("select pg_sleep(0.002)")

    @rule()
    def run_all(self):
        self.history.run()

    @rule(table=st.sampled_from(TABLES), is_cut=st.booleans())
    def run_one(self, table, is_cut):
        self.history.run((table,), is_cut=is_cut)

    @rule(interruptions=INTERRUPTIONS)
    def run_all_interrupted(self, interruptions):
        self.history.run(interruptions=interruptions)

    @rule(table=st.sampled_from(TABLES), is_cut=st.booleans(), interruptions=INTERRUPTIONS)
    def run_one_interrupted(self, table, is_cut, interruptions):
        self.history.run((table,), interruptions=interruptions, is_cut=is_cut)

    def teardown(self):
        self.history.finish()
        self.history.run()
        self.history.compare_as_text()

    def has_open(self):
        return any(slot.is_open for slot in self.history.slots)


def play_histories(history, examples, **changes):
    """Play generated histories; the first that fails raises its AssertionError."""
    given = {
        "max_examples": examples,
        "stateful_step_count": 40,
        "derandomize": True,
        "database": None,
        "deadline": None,
        "report_multiple_bugs": False,
        "print_blob": False,
        "suppress_health_check": list(HealthCheck),
    }
    run_state_machine_as_test(partial(Histories, history), settings=settings(**{**given, **changes}))


@pytest.fixture
def history(replication, wait_until, monkeypatch):
    """A history on an empty pair of databases, whose steps can interrupt a run."""
    make_tables(replication)
    # The margin covers a moment that one thread cannot meet; without it, nothing hides a point taken too high.
    replication.settings = dataclasses.replace(
        replication.settings, fence_margin_seconds=0.0, fence_wait_seconds=0.0, parallel_tables=1, max_attempts=1
    )
    found = History(replication, wait_until)
    list_activity = open_transactions.list_activity

    def list_interrupted(cursor, *, is_standby):
        found.reach_moment()
        activity = list_activity(cursor, is_standby=is_standby)
        found.reach_moment()
        return activity

    monkeypatch.setattr(open_transactions, "list_activity", list_interrupted)
    yield found
    found.close()


@pytest.fixture(params=["as superuser", "without pg_read_all_stats"])
def read_history(history, read_as_role, request):
    """The history, also read by a role that cannot see when transactions of others began."""
    if request.param != "as superuser":
        read_as_role(False)
        history.sends_messages = False  # the documented limit of such a role
    return history


def report(tally, record_property):
    print(dict(tally))
    for name, count in tally.items():
        record_property(name, count)


@pytest.mark.has_long_form
def test_raw_holds_everything_committed_before_each_snapshot(read_history, is_long, record_property):
    started = time.monotonic()

    play_histories(read_history, 260 if is_long else 20, derandomize=not is_long, print_blob=is_long)

    read_history.tally["seconds"] = round(time.monotonic() - started)
    report(read_history.tally, record_property)
    assert read_history.tally["committed after a run"] > 10


@pytest.mark.usefixtures("watermark_is_maximum")
def test_same_histories_fail_with_the_maximum_as_watermark(history, record_property):
    with pytest.raises(AssertionError):
        play_histories(history, 100, phases=[Phase.generate])

    report(history.tally, record_property)


WRITERS = 8
MAX_SECONDS = 0.6
MAX_SECONDS_RARE = 2.5  # longer than the margin of these runs, so that the margin alone does not save a row


def write_until(url, seed, deadline):
    """Play transactions of random length until the deadline; return what was done."""
    chance, tally = random.Random(seed), Counter()
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        while time.monotonic() < deadline:
            rows = play_transaction(cursor, chance)
            is_lost = chance.random() < 0.15
            cursor.execute("rollback" if is_lost else "commit")
            tally["transactions"] += 1
            tally["rows"] += 0 if is_lost else rows
    connection.close()
    return tally


def play_transaction(cursor, chance):
    """Write some rows over a random time and leave the transaction open; return how many were written."""
    writes = chance.randint(1, 6)
    length = chance.uniform(0, MAX_SECONDS_RARE if chance.random() < 0.1 else MAX_SECONDS)
    written = 0
    cursor.execute("begin")
    for _ in range(writes):
        written += write_somewhere(cursor, chance)
        cursor.execute("select pg_sleep(%s)", (length / writes,))
    return written


def write_somewhere(cursor, chance):
    """Insert a row, or update one that nobody has locked; return how many rows that were."""
    table, note = chance.choice(TABLES), f"{chance.random()}"
    if table in NUMBERED or chance.random() < 0.5:
        cursor.execute(f"insert into {table} (note) values (%s)", (note,))
    else:
        row = f"(select id from {table} where id >= %s order by id limit 1 for update skip locked)"
        statement = UPDATE.format(table=table, stamp=STAMPED[table][1], row=row)
        cursor.execute(statement, (note, chance.randint(1, 200)))
    return cursor.rowcount


def run_beside_writers(replication, seconds):
    """Run without pause while eight sessions write, and once more after they have ended; return the figures."""
    make_tables(replication)
    replication.settings = dataclasses.replace(replication.settings, fence_margin_seconds=1.0, fence_wait_seconds=0.05)
    tally, deadline = Counter(), time.monotonic() + seconds
    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(write_until, replication.source_url, seed, deadline) for seed in range(WRITERS)]
        while not all(writer.done() for writer in writers):
            replication.run()
            tally["runs"] += 1
    for writer in writers:
        tally.update(writer.result())
    replication.run()
    return tally


def count_differences(replication):
    """Return, for each table, how many rows of the source `raw` lacks or has otherwise."""
    differences = {}
    for table in TABLES:
        source, raw = replication.rows(table)
        differences[table] = len(set(source) - set(raw))
    return differences


@pytest.mark.has_long_form
def test_runs_beside_eight_writers_lose_nothing(replication, is_long, record_property):
    tally = run_beside_writers(replication, 120 if is_long else 8)

    report(tally, record_property)
    for table in TABLES:
        source, raw = replication.rows(table)
        assert len(source) > 5
        assert source == raw
    assert tally["runs"] > 3
    assert tally["transactions"] > 50


@pytest.mark.usefixtures("watermark_is_maximum")
def test_same_runs_lose_rows_with_the_maximum_as_watermark(replication, record_property):
    tally = run_beside_writers(replication, 8)

    differences = count_differences(replication)
    report({**tally, **{f"lost in {table}": rows for table, rows in differences.items()}}, record_property)
    assert tally["runs"] > 3
    assert sum(differences.values()) > 0
