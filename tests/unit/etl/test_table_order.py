"""Tables that are replicated one by one go children first, also where tables refer to each other or to themselves."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from etl.policy.table_order import order_children_first, related_tables

NAMES = ["customers", "events", "items", "orders", "payments", "products"]
references_of = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=14)


def reaches(references):
    """Return the pairs of which the first leads to the second over one or more references; the plain definition."""
    found = set(references)
    for via, first, last in itertools.product(NAMES, NAMES, NAMES):
        if (first, via) in found and (via, last) in found:
            found.add((first, last))
    return found


def test_lines_go_before_orders_and_orders_before_customers():
    references = [("items", "orders"), ("items", "products"), ("orders", "customers"), ("payments", "orders")]

    order = order_children_first(NAMES, references)

    assert order.names == ("items", "payments", "orders", "customers", "events", "products")
    assert order.cycles == ()


@given(references_of)
def test_child_goes_before_its_parent_unless_they_form_a_cycle(references):
    order = order_children_first(NAMES, references)

    place = {name: number for number, name in enumerate(order.names)}
    leads = reaches(references)
    assert sorted(order.names) == NAMES
    for child, parent in leads:
        if (parent, child) not in leads:
            assert place[child] < place[parent], (child, parent)


@given(references_of)
def test_cyclic_references_are_reported(references):
    order = order_children_first(NAMES, references)

    leads = reaches(references)
    told = {pair for cycle in order.cycles for pair in itertools.permutations(cycle, 2)}
    assert told == {(one, other) for one, other in leads if one != other and (other, one) in leads}
    assert len(set(itertools.chain(*order.cycles))) == sum(map(len, order.cycles))


@given(references_of, st.permutations(NAMES))
def test_table_order_is_independent_of_the_listing(references, names):
    expected = order_children_first(NAMES, references)

    assert order_children_first(names, references[::-1]) == expected


def test_references_to_unreplicated_tables_are_ignored():
    order = order_children_first(["orders", "items"], [("items", "products"), ("products", "orders")])

    assert order.names == ("items", "orders")
    assert related_tables(["orders", "items"], [("items", "products"), ("items", "orders")]) == ("items", "orders")


def test_self_reference_is_neither_a_cycle_nor_read_again():
    references = [("orders", "orders"), ("items", "orders"), ("events", "events")]

    assert order_children_first(NAMES, references).cycles == ()
    assert related_tables(NAMES, references) == ("items", "orders")
