"""Whether a raw table may go on with a source: every combination against its plain definition."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.model import Progress, Snapshot, SourceIdentity
from etl.policy.source_identity import describe_source, is_continued, is_other, judge_source

TABLE = SimpleNamespace(name="items", argument="items")
KNOWN = SourceIdentity(system_identifier="7", database_oid=5, database_name="shop", schema="public", timeline=2)
IDENTITIES = st.builds(
    SourceIdentity,
    system_identifier=st.sampled_from([None, "7", "8"]),
    database_oid=st.sampled_from([None, 5, 6]),
    database_name=st.sampled_from([None, "shop", "other"]),
    schema=st.sampled_from([None, "public", "other"]),
    timeline=st.sampled_from([None, 1, 2, 3]),
)
SOURCES = IDENTITIES.filter(lambda source: None not in (source.system_identifier, source.database_oid, source.schema))


def snapshot(source=KNOWN, next_xid=1000, is_standby=False):
    return Snapshot(
        name="", source=source, is_standby=is_standby, oldest_xid="0", next_xid=str(next_xid), expires_at=0.0
    )


def differ(one, other):
    return one is not None and other is not None and one != other


@given(
    stored=IDENTITIES,
    now=SOURCES,
    xid_before=st.sampled_from([None, "999", "1000", "1001"]),
    refusal=st.sampled_from([None, "it was older"]),
    is_standby=st.booleans(),
)
def test_judgement_equals_its_definition(stored, now, xid_before, refusal, is_standby):
    progress = Progress(source=stored, next_xid=xid_before, refusal=refusal)
    judged = judge_source(TABLE, progress, snapshot(now, 1000, is_standby))

    is_another = any(
        differ(getattr(stored, part), getattr(now, part)) for part in ("system_identifier", "database_oid", "schema")
    )
    is_new_timeline = differ(stored.timeline, now.timeline)
    is_older = now.timeline < stored.timeline if is_new_timeline else xid_before == "1001"
    if is_another or is_older:
        expected = "refuse"
    elif is_new_timeline:
        expected = "compare"
    else:
        expected = "refuse" if refusal else "continue"
    assert judged.action == expected
    assert judged.is_older == (is_older and not is_another)
    assert bool(judged.finding) == (expected != "continue")
    assert bool(judged.next_step) == (expected == "refuse")


@given(stored=IDENTITIES, now=SOURCES)
def test_unfinished_load_continues_only_on_its_timeline(stored, now):
    assert is_continued(stored, now) == (not is_other(stored, now) and not differ(stored.timeline, now.timeline))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (KNOWN, 'database "shop" (oid 5), schema "public", the cluster with system identifier 7'),
        (SourceIdentity(system_identifier="7"), "the cluster with system identifier 7"),
    ],
)
def test_description_has_what_is_known(source, expected):
    assert describe_source(source) == expected
