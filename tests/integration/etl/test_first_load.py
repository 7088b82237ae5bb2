"""First loads in ranges of blocks: broken, resumed, cut by time and started over, while the source goes on changing.

Rows are wide, four to a block, so that a small table has many ranges. What a load has to equal is the source at the
load's last snapshot, row for row: `Load` takes that picture when a table is started, and plays changes between
the ranges.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import etl
from etl.replicate import checks, full_load

# Keys travel in COPY's text format: these look like its separator, its NULL and nothing.
SHOPS = ("a\tb", "\\N", "")
ROWS = 96  # 24 blocks
RANGE_BLOCKS = 4  # 16 rows
# A row's wide part, below the 2 kB from which values are stored elsewhere.
WIDE = "repeat(md5(random()::text), 56)"


class BrokenLoadError(Exception):
    """Ends a run between two ranges, as no error of a database would."""


def make_items(replication: Any, rows: int = ROWS, *, is_partitioned: bool = False) -> None:
    partition = "partition by list (shop)" if is_partitioned else ""
    replication.on_source(
        f"""
        create table items (
            item_id int not null,
            shop text not null,
            payload text not null,
            updated_at timestamptz not null default clock_timestamp(),
            note text,
            primary key (shop, item_id)
        ) {partition};
        alter table items alter column payload set storage plain
        """
    )
    for number, shop in enumerate(SHOPS if is_partitioned else ()):
        replication.on_source(f"create table items_{number} partition of items for values in (%s)", shop)
    replication.on_source("create index on items (updated_at)")
    add_items(replication, range(rows))


def add_items(replication: Any, item_ids: Sequence[int]) -> None:
    replication.on_source(
        f"insert into items (item_id, shop, payload, note) select i, (%s::text[])[i %% 3 + 1], {WIDE}, 'note' "
        "from unnest(%s::int[]) as i",
        list(SHOPS),
        list(item_ids),
    )


@pytest.fixture
def items(replication: Any) -> Any:
    """A replication whose source has 96 items in 24 blocks."""
    make_items(replication)
    return replication


def read_rows(read: Callable[..., Any], schema: str) -> list[str]:
    columns = "item_id, shop, payload, updated_at, note"
    return sorted(row[0] for row in read(f"select row({columns})::text from {schema}.items"))


def is_in_raw(replication: Any) -> bool:
    return bool(replication.on_target("select to_regclass('raw.items') is not null")[0][0])


def assert_nothing_left(replication: Any) -> None:
    """A finished load leaves neither its table nor its progress, and a raw table with its key."""
    assert replication.on_target("select relname from pg_class where relname like '%%loading%%'") == []
    assert replication.on_target("select * from etl.loads") == []
    assert replication.on_target("select count(*) from pg_class where relpersistence = 't'") == [(0,)]
    assert replication.on_target(
        "select count(*) from pg_index where indrelid = 'raw.items'::regclass and indisprimary and indisvalid"
    ) == [(1,)]


def assert_equal(replication: Any) -> None:
    source, raw = replication.rows("items")
    assert source == raw
    assert_nothing_left(replication)


@dataclass
class Load:
    """Runs of one table, with something to do after each of their batches.

    `actions` are taken one by one, one after each batch; one that raises BrokenLoadError breaks the run.
    """

    replication: Any
    actions: Iterator[Callable[[], None]] = field(default_factory=lambda: iter(()))
    expected: list[str] = field(default_factory=list)  # the source at the newest snapshot
    snapshots: int = 0
    batches: int = 0

    def __call__(self, event: Any) -> None:
        if event.kind == "table_started":
            # The snapshot has just been taken, and nothing but these actions changes the source.
            self.expected = read_rows(self.replication.on_source, "public")
            self.snapshots += 1
        elif event.kind == "batch_committed":
            self.batches += 1
            self.assert_none_or_whole()
            next(self.actions, lambda: None)()

    def assert_none_or_whole(self) -> None:
        """Readers of `raw` never see half a table."""
        if is_in_raw(self.replication):
            assert read_rows(self.replication.on_target, "raw") == self.expected

    def run(self, **changes: Any) -> Any:
        (result,) = run_observed(self.replication, self, **{"load_range_blocks": RANGE_BLOCKS, **changes})
        assert result.status == "succeeded", result.error
        return result

    def assert_done(self) -> None:
        """What was loaded is the source at the last snapshot."""
        assert read_rows(self.replication.on_target, "raw") == self.expected
        assert_nothing_left(self.replication)


def run_observed(replication: Any, observe: Callable[[Any], None], name: str = "items", **changes: Any) -> Any:
    return etl.run(dataclasses.replace(replication.settings, **changes), [name], observe=observe).tables


def stop() -> None:
    raise BrokenLoadError


def after_batches(count: int, action: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Do something once, after this many batches."""
    return iter([*[lambda: None] * (count - 1), action])


def break_load(replication: Any, batches: int = 3, **changes: Any) -> None:
    """Run a load that breaks after this many ranges."""
    with pytest.raises(BrokenLoadError):
        Load(replication, after_batches(batches, stop)).run(**changes)
    assert not is_in_raw(replication)
    assert replication.on_target("select next_block > 0 from etl.loads") == [(True,)]
    ((name,),) = replication.on_target(
        "select relname from pg_class where relname like '%%loading%%' and relkind = 'r'"
    )
    assert replication.on_target(f"select count(*) > 0 from etl.{name}") == [(True,)]


@pytest.mark.parametrize("is_partitioned", [False, True], ids=["plain", "partitioned"])
@pytest.mark.parametrize("blocks", [1, 4, 23])
def test_a_load_in_ranges_equals_the_source(replication, blocks, is_partitioned):
    make_items(replication, is_partitioned=is_partitioned)

    result = Load(replication).run(load_range_blocks=blocks)

    ((batches, rows_read, inserted),) = replication.on_target(
        "select batches, rows_read, rows_inserted from etl.table_runs"
    )
    assert batches > 1
    assert rows_read == inserted == result.rows_read == ROWS
    assert_equal(replication)


@pytest.mark.parametrize("is_partitioned", [False, True], ids=["plain", "partitioned"])
def test_an_empty_table_is_loaded_empty(replication, is_partitioned):
    make_items(replication, rows=0, is_partitioned=is_partitioned)

    result = Load(replication).run()

    assert result.rows_read == 0
    assert is_in_raw(replication)
    assert_equal(replication)


def test_partitioned_table_without_partitions_loads_empty(replication):
    replication.on_source(
        "create table items (shop text, item_id int, payload text, updated_at timestamptz not null, note text, "
        "primary key (shop, item_id)) partition by list (shop)"
    )

    Load(replication).run()

    assert_equal(replication)


def test_table_growing_during_its_load_is_caught_up_afterwards(items):
    numbers = iter(range(1000, 9000, 100))
    load = Load(items, iter([lambda: add_items(items, range(start := next(numbers), start + 40))] * 6))

    load.run()

    load.assert_done()
    assert len(load.expected) == ROWS
    caught_up = Load(items).run()
    assert caught_up.rows_inserted == 6 * 40
    assert_equal(items)


def test_raw_hides_a_table_until_it_is_complete(items):
    """`Load` looks after each batch; here the premise: it looked often, and the table came only at the end."""
    seen = []
    load = Load(items, iter([lambda: seen.append(is_in_raw(items))] * 100))

    load.run()

    assert seen == [False] * 6
    load.assert_done()


def test_interrupted_load_resumes_where_it_stopped(items):
    break_load(items, 4)

    load = Load(items)
    result = load.run()

    assert result.rows_read == ROWS - 4 * RANGE_BLOCKS * 4
    load.assert_done()
    assert_equal(items)


def test_load_interrupted_after_every_range_still_completes(items):
    """Each run does one range, and the last one brings all of them to its own snapshot."""
    load = Load(items)
    runs = 0
    while not is_in_raw(items):
        items.on_source("update items set payload = payload || '!' where item_id %% 10 = %s", runs % 10)
        are_all_read = items.on_target("select next_block from etl.loads") == [(None,)] if runs else False
        load.actions = iter([] if are_all_read else [stop])
        try:
            load.run()
        except BrokenLoadError:
            assert not is_in_raw(items)
        runs += 1
        assert runs < 50

    assert runs > 5
    load.assert_done()


def test_load_interrupted_after_its_last_range_is_caught_up(items, monkeypatch):
    """Nothing is left to read then, but what was read has grown old."""
    from etl.target.new_table import RawLoad

    publish = RawLoad.publish
    monkeypatch.setattr(RawLoad, "publish", lambda *_, **__: stop())
    with pytest.raises(BrokenLoadError):
        Load(items).run()
    monkeypatch.setattr(RawLoad, "publish", publish)
    assert items.on_target("select next_block from etl.loads") == [(None,)]
    items.on_source("update items set payload = 'silent' where item_id < 10")
    items.on_source("delete from items where item_id between 20 and 29")
    add_items(items, range(500, 520))

    load = Load(items)
    result = load.run()

    assert result.rows_read == 30
    load.assert_done()
    assert_equal(items)


REFUSE_ONCE = """
    create sequence public.times_refused;
    create function public.refuse_once() returns event_trigger language plpgsql as $$
    begin
        if exists (select from pg_event_trigger_ddl_commands() where object_identity = 'raw.items') then
            if nextval('public.times_refused') = 1 then
                raise 'not like this';
            end if;
        end if;
    end $$;
    create event trigger refuse_once on ddl_command_end when tag in ('ALTER TABLE')
        execute function public.refuse_once()
"""


def test_rows_are_read_at_a_snapshot_after_the_table_is_rejected(items):
    """The snapshot has been left by then, for what is built at the end needs nothing of the source."""
    items.on_target(REFUSE_ONCE)

    result = Load(items).run()

    assert items.on_target("select last_value from public.times_refused")[0][0] > 1
    assert result.retries == 1
    assert_equal(items)


def test_load_spanning_many_transactions_is_renewed_in_time(items, monkeypatch):
    monkeypatch.setattr(checks, "MAX_XID_DISTANCE", 20)
    monkeypatch.setattr(full_load, "RENEWED_XID_DISTANCE", 10)
    break_load(items)
    begun = items.on_target("select oid from pg_class where relname like '%%loading%%' and relkind = 'r'")
    for _ in range(3):  # 36 transactions in all
        for number in range(12):
            items.on_source("update items set payload = payload || '!' where item_id = %s", number)
        load = Load(items, iter([stop]))
        with pytest.raises(BrokenLoadError):
            load.run()

    load = Load(items)
    load.run()

    assert items.on_target("select 'raw.items'::regclass::oid") == begun
    load.assert_done()
    assert_equal(items)


def move_to_the_front(replication: Any) -> None:
    """Free the first blocks, then update rows of blocks not read yet until some of them move there."""
    replication.on_source("delete from items where item_id < 12")
    replication.on_source("vacuum items")
    replication.on_source("update items set payload = payload where item_id >= 80")
    ((moved,),) = replication.on_source("select count(*) from items where item_id >= 80 and ctid < '(4,0)'")
    assert moved > 0


def move_to_the_end(replication: Any) -> None:
    """Update rows of loaded blocks: their versions go to blocks not read yet."""
    replication.on_source("update items set payload = payload where item_id < 40")
    ((moved,),) = replication.on_source("select count(*) from items where item_id < 40 and ctid > '(20,0)'")
    assert moved > 0


def run_on_source(*statements: str) -> Callable[[Any], None]:
    def change(replication: Any) -> None:
        for statement in statements:
            replication.on_source(statement)

    return change


CHANGES = {
    "updated silently": run_on_source("update items set payload = 'silent' where item_id < 5"),
    "updated silently, and what was there vacuumed": run_on_source(
        "update items set payload = 'silent' where item_id < 5", "vacuum items"
    ),
    "moved to later blocks": move_to_the_end,
    "moved to earlier blocks": move_to_the_front,
    "deleted": run_on_source("delete from items where item_id < 10"),
    "deleted and inserted again": run_on_source(
        "delete from items where item_id < 5",
        "insert into items (item_id, shop, payload, updated_at) "
        "select i, (array['a\tb', '\\N', ''])[i % 3 + 1], 'again', '2001-01-01' from generate_series(0, 4) as i",
    ),
    "given other keys": run_on_source("update items set item_id = item_id + 1000 where item_id < 5"),
    "given each other's keys": run_on_source(
        "begin; update items set item_id = -1 where item_id = 0; update items set item_id = 0 where item_id = 3; "
        "update items set item_id = 3 where item_id = -1; commit"
    ),
    "moved to another shop": run_on_source("update items set shop = 'a\tb' where shop = '' and item_id < 20"),
    "inserted": lambda replication: add_items(replication, range(1000, 1010)),
    "changed in a subtransaction": run_on_source(
        "begin; savepoint a; update items set payload = 'sub' where item_id < 5; release a; commit"
    ),
    "changed in vain": run_on_source("begin; update items set payload = 'never' where item_id < 5; rollback"),
    "frozen": run_on_source("update items set payload = 'cold' where item_id < 5", "vacuum freeze items"),
    "locked": run_on_source("select from items where item_id < 50 for update"),
    "gone, with their blocks": run_on_source("delete from items where item_id > 8", "vacuum items"),
    "all gone, with their blocks": run_on_source("delete from items", "vacuum items"),
}


# The moves name blocks of the plain table.
CASES = [(change, False) for change in CHANGES] + [
    (change, True) for change in CHANGES if change not in ("moved to later blocks", "moved to earlier blocks")
]


@pytest.mark.parametrize(("change", "is_partitioned"), CASES)
def test_changes_during_an_interrupted_load_arrive_on_resume(replication, change, is_partitioned):
    make_items(replication, is_partitioned=is_partitioned)
    break_load(replication)
    begun = replication.on_target("select oid from pg_class where relname like '%%loading%%' and relkind = 'r'")
    CHANGES[change](replication)

    load = Load(replication)
    load.run()

    assert replication.on_target("select 'raw.items'::regclass::oid") == begun
    load.assert_done()
    assert_equal(replication)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_transaction_ending_between_snapshots_is_read_correctly(items, ending):
    """Its id is below the snapshot's next one, and yet the snapshot did not see its rows."""
    with closing(items.open_source()) as writer, writer.cursor() as cursor:
        cursor.execute("update items set payload = 'held' where item_id < 5; delete from items where item_id = 7")
        # Ids after the open one that the snapshot does see.
        items.on_source("update items set payload = 'seen' where item_id between 10 and 12")
        break_load(items)
        cursor.execute(ending)

    load = Load(items)
    result = load.run()

    assert result.rows_read < ROWS
    load.assert_done()
    assert_equal(items)


def test_late_commit_arrives_after_a_load_of_several_snapshots(items):
    """The stored watermark is that of the last snapshot's fence, which the open transaction holds back."""
    with closing(items.open_source()) as writer, writer.cursor() as cursor:
        cursor.execute("insert into items (item_id, shop, payload, updated_at) values (5000, '', 'late', now())")
        load = Load(items, iter([lambda: add_items(items, [next(numbers)])] * 5))
        numbers = iter(range(6000, 7000))
        load.run(max_snapshot_seconds=0)
        assert load.snapshots > 3
        load.assert_done()
        writer.commit()

    Load(items).run()

    assert_equal(items)


@pytest.mark.parametrize("is_partitioned", [False, True], ids=["plain", "partitioned"])
def test_time_limited_load_continues_at_new_snapshots(replication, is_partitioned):
    make_items(replication, is_partitioned=is_partitioned)
    changes = iter(
        [
            lambda: replication.on_source("update items set payload = 'silent' where item_id < 8"),
            lambda: replication.on_source("delete from items where item_id between 20 and 25"),
            lambda: replication.on_source("vacuum items"),
            lambda: replication.on_source("update items set payload = payload where item_id > 70"),
            lambda: replication.on_source("update items set item_id = item_id + 1000 where item_id = 1"),
            lambda: add_items(replication, range(500, 510)),
        ]
    )
    load = Load(replication, changes)

    result = load.run(max_snapshot_seconds=0)

    assert load.snapshots > 3
    assert result.retries == 0
    load.assert_done()
    assert_equal(replication)


REWRITES = {
    "truncated and filled again": (
        "begin; truncate items; insert into items select i, 'x', 'new' from generate_series(1, 90) as i; commit"
    ),
    "truncated": "truncate items",
    "vacuumed in full": "vacuum full items",
    "clustered": "cluster items using items_pkey",
    "given a key of another type": "alter table items alter column item_id type bigint",
    "given a type that needs no rewrite": "alter table items alter column payload type varchar",
    "given a column": "alter table items add column extra int default 7",
    "given another name for a column": "alter table items rename column note to remark",
    "deprived of a column": "alter table items drop column note",
    "given another key": "alter table items drop constraint items_pkey; alter table items add primary key (item_id)",
    "given an empty column of the name of one dropped": (
        "alter table items drop column note; alter table items add column note text"
    ),
    "dropped and made again": (
        "alter table items rename to old_items; create table items (like old_items including all); "
        "insert into items select * from old_items where item_id > 10; drop table old_items"
    ),
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_load_restarts_when_its_table_is_rewritten(items, rewrite):
    break_load(items)
    for statement in REWRITES[rewrite].split("; ") if "vacuum" in rewrite else [REWRITES[rewrite]]:
        items.on_source(statement)

    result = items.run_one("items", load_range_blocks=RANGE_BLOCKS)

    assert result.rows_read == items.on_source("select count(*) from items")[0][0]
    assert_equal(items)


def test_table_truncated_during_a_run_loads_its_new_rows(items, wait_until):
    """TRUNCATE waits for the range in hand, and comes between two snapshots."""
    writer = items.open_source()

    def truncate() -> None:
        with closing(writer), writer.cursor() as cursor:
            cursor.execute("truncate items; insert into items select i, 'x', 'new' from generate_series(1, 90) as i")
            writer.commit()

    thread = threading.Thread(target=truncate)

    def begin_truncating() -> None:
        thread.start()
        wait_until(lambda: items.on_source("select count(*) from pg_locks where not granted") == [(1,)])

    load = Load(items, after_batches(2, begin_truncating))
    load.run(max_snapshot_seconds=0)
    thread.join()

    assert items.on_target("select count(*) from raw.items where payload = 'new'") == [(90,)]
    assert_equal(items)


# What may happen to rows at any time; %(i)s is an item. A session of its own, which holds a transaction open across
# snapshots and breaks, works on every fifth item; the others leave these alone, so that nobody waits for it.
MEANWHILE = {
    "update silently": "update items set payload = {wide} where item_id = %(i)s",
    "update": "update items set payload = {wide}, updated_at = clock_timestamp() where item_id = %(i)s",
    "update many": "update items set payload = {wide} where item_id between %(i)s and %(i)s + 20 and {mine}",
    "delete": "delete from items where item_id = %(i)s",
    "delete many": "delete from items where item_id between %(i)s and %(i)s + 20 and {mine}",
    "delete and insert": (
        "with gone as (delete from items where item_id = %(i)s returning *) select 1; "
        "insert into items (item_id, shop, payload) values (%(i)s, '', {wide}) on conflict do nothing"
    ),
    "change the key": "update items set item_id = item_id + 1000 where item_id = %(i)s",
    "swap keys": (
        "begin; update items set item_id = -1 where item_id = %(i)s; "
        "update items set item_id = %(i)s where item_id = %(i)s + 5; "
        "update items set item_id = %(i)s + 5 where item_id = -1; commit"
    ),
    "move to another shop": (
        "update items as a set shop = '' where item_id = %(i)s "
        "and not exists (select from items as b where b.item_id = a.item_id and b.shop = '')"
    ),
    "update in a subtransaction": (
        "begin; savepoint a; update items set payload = {wide} where item_id = %(i)s; release a; commit"
    ),
    "update in vain": "begin; update items set payload = {wide} where item_id = %(i)s; rollback",
    "lock": "select from items where item_id between %(i)s and %(i)s + 20 and {mine} for no key update",
    "vacuum": "vacuum items",
    "freeze": "vacuum freeze items",
}
HELD = {
    "update": "update items set payload = {wide} where item_id %% 5 = 0 and item_id between %(i)s and %(i)s + 30",
    "delete": "delete from items where item_id %% 5 = 0 and item_id between %(i)s and %(i)s + 30",
    "insert": (
        "insert into items (item_id, shop, payload) "
        "select i * 5, '', {wide} from generate_series(%(i)s, %(i)s + 4) as i on conflict do nothing"
    ),
}
REWRITTEN = {
    "truncate": "truncate items",
    "vacuum in full": "vacuum full items",
    "alter": "alter table items alter column payload type text using payload || '?'",
}
ITEMS = st.integers(min_value=0, max_value=ROWS).map(lambda i: i if i % 5 else i + 1)
CHANGE = st.one_of(
    st.tuples(st.just("meanwhile"), st.sampled_from([*MEANWHILE, "insert"]), ITEMS),
    st.tuples(st.just("held"), st.sampled_from([*HELD, "commit", "roll back"]), ITEMS),
)
REWRITE = st.tuples(st.just("rewritten"), st.sampled_from(sorted(REWRITTEN)), ITEMS)


@dataclass(frozen=True)
class Step:
    """What happens after one batch: changes, and perhaps the run breaks, and more changes until the next."""

    changes: tuple[tuple[str, str, int], ...]
    is_break: bool
    changes_before_next_run: tuple[tuple[str, str, int], ...]


STEPS = st.builds(
    Step,
    changes=st.lists(CHANGE, max_size=4).map(tuple),
    is_break=st.booleans(),
    changes_before_next_run=st.lists(st.one_of(*[CHANGE] * 8, REWRITE), max_size=4).map(tuple),
)


@dataclass
class History:
    """Plays a generated history against a source."""

    replication: Any
    held: Any  # the session that holds a transaction open
    next_item: int = 10_001

    def play(self, change: tuple[str, str, int]) -> None:
        kind, name, item = change
        if name == "commit":
            self.held.commit()
        elif name == "roll back":
            self.held.rollback()
        elif kind == "held":
            self._execute(self.held, HELD[name], item)
        elif name == "insert":
            add_items(self.replication, range(self.next_item, self.next_item + 25, 5))
            self.next_item += 25
        elif kind == "meanwhile":
            self._execute(self.replication.source, MEANWHILE[name], item)
        else:
            self.held.rollback()  # its locks would make the statement wait for ever
            self._execute(self.replication.source, REWRITTEN[name], item)

    def as_action(self, step: Step, between: list[tuple[str, str, int]]) -> Callable[[], None]:
        def act() -> None:
            for change in step.changes:
                self.play(change)
            if step.is_break:
                between.extend(step.changes_before_next_run)
                raise BrokenLoadError

        return act

    def _execute(self, connection: Any, statement: str, item: int) -> None:
        text = statement.format(wide=WIDE, mine="item_id %% 5 <> 0")
        for part in text.split("; ") if "begin" not in text else [text]:
            with connection.cursor() as cursor:
                cursor.execute(part, {"i": item})


@pytest.mark.has_long_form
def test_any_history_ends_with_the_rows_of_the_last_snapshot(replication, is_long):
    @settings(
        max_examples=200 if is_long else 10,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        steps=st.lists(STEPS, min_size=4, max_size=16),
        cuts=st.lists(st.booleans(), min_size=1, max_size=4),
        range_blocks=st.integers(min_value=1, max_value=7),
        is_partitioned=st.booleans(),
    )
    def check(steps: list[Step], cuts: list[bool], range_blocks: int, is_partitioned: bool) -> None:
        start_anew(replication, is_partitioned=is_partitioned)
        with closing(replication.open_source()) as held:
            history = History(replication, held)
            between: list[tuple[str, str, int]] = []
            load = Load(replication, iter([history.as_action(step, between) for step in steps]))
            runs = 0
            while not is_in_raw(replication):
                is_cut = cuts[runs % len(cuts)]
                with suppress(BrokenLoadError):
                    load.run(load_range_blocks=range_blocks, max_snapshot_seconds=0 if is_cut else 60)
                if not is_in_raw(replication):
                    for change in between:
                        history.play(change)
                between.clear()
                runs += 1
                assert runs <= len(steps) + 1
            load.assert_done()

    check()


def start_anew(replication: Any, *, is_partitioned: bool) -> None:
    """Leave neither the table nor anything that is known of it."""
    replication.on_source("drop table if exists items")
    make_items(replication, is_partitioned=is_partitioned)
    if replication.on_target("select to_regclass('etl.loads') is not null") == [(True,)]:
        replication.on_target(
            "drop table if exists raw.items; delete from etl.loads; delete from etl.watermarks; "
            "do $$ declare name text; begin "
            "for name in select relname from pg_class where relname like '%%loading%%' and relkind = 'r' loop "
            "execute format('drop table etl.%%I', name); end loop; end $$"
        )


def test_time_limited_batches_load_all_until_the_last_snapshot(items):
    """With a watermark, what is written during the run comes last in its order, and is read in the same run."""
    items.configure({"tables": {"items": {"batch_rows": 10}}})
    items.run_one("items")
    items.on_source("update items set payload = 'new', updated_at = clock_timestamp() where item_id < 60")

    def change(number: int) -> Callable[[], None]:
        return lambda: items.on_source(
            "update items set payload = payload || '!', updated_at = clock_timestamp() where item_id in (%s, %s); "
            f"insert into items (item_id, shop, payload) values ({1000 + number}, '', 'during the run')",
            number,
            90 - number,
        )

    snapshots = []
    actions = iter([change(number) for number in range(5)])

    def observe(event: Any) -> None:
        if event.kind == "table_started":
            snapshots.append(event)
        elif event.kind == "batch_committed":
            next(actions, lambda: None)()

    (result,) = run_observed(items, observe, max_snapshot_seconds=0)

    assert result.status == "succeeded", result.error
    assert result.rows_inserted == 5
    assert len(snapshots) > 3
    assert_equal(items)


def test_time_limited_full_read_continues_after_the_last_key(replication):
    """What changes before the place that the reading has come to is younger than the run, and comes with the next."""
    replication.on_source("create table notes (note_id int primary key, body text)")
    replication.on_source("insert into notes select i * 10, 'old' from generate_series(1, 60) as i")
    replication.configure({"tables": {"notes": {"batch_rows": 10}}})
    replication.run_one("notes")
    replication.on_source("update notes set body = 'new'")
    snapshots = []
    changes = iter(
        [
            "update notes set body = 'ahead' where note_id between 400 and 450",
            "insert into notes values (455, 'ahead'), (465, 'ahead')",
            "update notes set body = 'behind' where note_id = 10; insert into notes values (15, 'behind')",
        ]
    )

    def observe(event: Any) -> None:
        if event.kind == "table_started":
            snapshots.append(event)
        elif event.kind == "batch_committed":
            replication.on_source(next(changes, "select 1"))

    (result,) = run_observed(replication, observe, "notes", max_snapshot_seconds=0)

    assert result.status == "succeeded", result.error
    assert len(snapshots) > 3
    assert result.rows_read == 62
    assert replication.on_target("select count(*) from raw.notes where body = 'ahead'") == [(8,)]
    replication.run_one("notes")
    source, raw = replication.rows("notes")
    assert source == raw
