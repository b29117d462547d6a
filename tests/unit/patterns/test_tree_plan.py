"""The plan of a tree: whatever the order of the answers, every leaf is reduced exactly once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.patterns._tree_plan import Group, Node, TreePlan

if TYPE_CHECKING:
    from random import Random

Leaves = tuple[int, ...]
COUNTS = st.integers(0, 200)
FAN_INS = st.integers(2, 9)
LIMIT = 100


def leaf(number: int, size: int = 1) -> Node[Leaves]:
    return Node((number,), size, number, number)


def joined(group: Group[Leaves]) -> Leaves:
    return tuple(number for node in group.nodes for number in node.content)


def depth_of(count: int, fan_in: int) -> int:
    """ceil(log_fan_in count), counted up in whole numbers; a lone leaf is reduced too."""
    depth, reach = 1, fan_in
    while reach < count:
        depth, reach = depth + 1, reach * fan_in
    return depth if count else 0


def run(plan: TreePlan[Leaves], leaves: list[Node[Leaves] | None], random: Random) -> list[
    Group[Leaves]
]:  # fmt: skip
    """Feed leaves and settle groups in random order; return all groups."""
    groups: list[Group[Leaves]] = []
    open_groups: list[Group[Leaves]] = []
    left = list(reversed(leaves))
    closed = False
    while not plan.finished:
        while (group := plan.take()) is not None:
            groups.append(group)
            open_groups.append(group)
        if open_groups and (closed or random.random() < 0.5):
            group = open_groups.pop(random.randrange(len(open_groups)))
            plan.done(group, joined(group), random.randint(1, LIMIT))
        elif left:
            plan.add(left.pop())
        else:
            assert not closed, "nothing is open, nothing is ready, and it has not finished"
            plan.close()
            closed = True
    assert plan.take() is None
    assert not open_groups
    return groups


@given(COUNTS, FAN_INS, st.randoms(use_true_random=False))
def test_every_leaf_once_in_order_at_the_least_depth(
    count: int, fan_in: int, random: Random
) -> None:
    plan: TreePlan[Leaves] = TreePlan(fan_in=fan_in)
    groups = run(plan, [leaf(number) for number in range(count)], random)

    assert plan.depth == depth_of(count, fan_in)
    assert (plan.root is None) == (count == 0)
    if plan.root is not None:
        assert plan.root.content == tuple(range(count))
        assert (plan.root.first, plan.root.last) == (0, count - 1)
    assert all(len(group.nodes) <= fan_in for group in groups)
    # Only a lone leaf is reduced on its own; what was reduced before is handed up as it is.
    assert all(len(group.nodes) > 1 or group.level == 1 for group in groups)
    assert len({(group.level, group.number) for group in groups}) == len(groups)


@given(COUNTS, FAN_INS, st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_answers(
    count: int, fan_in: int, random: Random
) -> None:
    plan: TreePlan[Leaves] = TreePlan(fan_in=fan_in)
    groups = run(plan, [leaf(number) for number in range(count)], random)
    for group in groups:
        width = fan_in**group.level
        start = group.number * width
        assert joined(group) == tuple(range(start, min(start + width, count)))


@given(
    st.lists(st.integers(1, LIMIT), max_size=150),
    st.one_of(st.none(), FAN_INS),
    st.randoms(use_true_random=False),
)
def test_no_group_over_the_limit(sizes: list[int], fan_in: int | None, random: Random) -> None:
    plan: TreePlan[Leaves] = TreePlan(fan_in=fan_in, limit=LIMIT)
    groups = run(plan, [leaf(number, size) for number, size in enumerate(sizes)], random)

    assert all(group.size <= LIMIT for group in groups)
    assert fan_in is None or all(len(group.nodes) <= fan_in for group in groups)
    assert all(len(group.nodes) > 1 or group.level == 1 for group in groups)
    if sizes:
        assert plan.root is not None
        assert plan.root.content == tuple(range(len(sizes)))
        assert plan.depth <= 1 + math.ceil(math.log2(len(sizes)) if sizes else 0)


@given(
    st.lists(st.booleans(), max_size=80),
    FAN_INS,
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_what_is_lost_is_left_out_and_nothing_else(
    kept: list[bool], fan_in: int, limited: bool, random: Random
) -> None:
    plan: TreePlan[Leaves] = TreePlan(fan_in=fan_in, limit=LIMIT if limited else None)
    run(plan, [leaf(number) if keep else None for number, keep in enumerate(kept)], random)
    expected = tuple(number for number, keep in enumerate(kept) if keep)
    assert plan.finished
    assert (plan.root.content if plan.root else ()) == expected


@given(st.integers(1, 60), FAN_INS, st.booleans(), st.randoms(use_true_random=False))
def test_a_lost_group_takes_its_leaves_along(
    count: int, fan_in: int, limited: bool, random: Random
) -> None:
    plan: TreePlan[Leaves] = TreePlan(fan_in=fan_in, limit=LIMIT if limited else None)
    gone: set[int] = set()
    for number in range(count):
        plan.add(leaf(number, 40))
    plan.close()
    while not plan.finished:
        group = plan.take()
        assert group is not None
        if random.random() < 0.3:
            plan.lost(group)
            gone.update(joined(group))
        else:
            plan.done(group, joined(group), 40)
    left = tuple(number for number in range(count) if number not in gone)
    assert (plan.root.content if plan.root else ()) == left


def test_a_group_is_ready_as_soon_as_its_members_are_there() -> None:
    plan: TreePlan[Leaves] = TreePlan(fan_in=2)
    for number in range(6):
        plan.add(leaf(number))
    first, second, third = (plan.take() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    # There may be any number of leaves to come, and the first two groups are done.
    plan.done(first, joined(first), 1)
    assert plan.take() is None
    plan.done(second, joined(second), 1)
    above = plan.take()
    assert above is not None
    assert (above.level, joined(above)) == (2, (0, 1, 2, 3))


def test_a_hundred_thousand_leaves_wait_for_nothing_but_their_group() -> None:
    plan: TreePlan[Leaves] = TreePlan(fan_in=10)
    groups = most = 0
    for number in range(100_000):
        plan.add(leaf(number))
        while (group := plan.take()) is not None:
            groups += 1
            plan.done(group, (group.number,), 1)
        most = max(most, sum(len(level._waiting) for level in plan._levels))
    plan.close()
    assert plan.finished
    assert plan.depth == 5
    assert groups == 11_111
    assert most < 60


def test_a_tree_needs_a_bound() -> None:
    with pytest.raises(ValueError, match="fan-in or a limit"):
        TreePlan()
