"""Which texts of a tree are reduced together: decided from their sizes alone, without I/O.

Level 0 holds the leaves. A group of neighbours on one level becomes one node of the next. With a
fan-in alone, group g holds the nodes g * fan_in and following, so that it is known beforehand and
ready as soon as these are there; the tree has ceil(log_fan_in n) levels. With a limit of tokens,
groups are filled in the order of the nodes, each as far as the limit allows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Group", "Node", "TreePlan"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Node(Generic[T]):
    """A leaf, or what a group was reduced to.

    Attributes:
        content: The text, or whatever stands for it.
        size: Its size in tokens.
        first: The first leaf under it.
        last: The last leaf under it.
    """

    content: T
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Nodes that are to be reduced to one.

    Attributes:
        level: Level of the node that it becomes: 1 for a group of leaves.
        number: Its place on that level, from 0.
        nodes: The nodes, at least one, in order.
    """

    level: int
    number: int
    nodes: tuple[Node[T], ...]

    @property
    def size(self) -> int:
        """Tokens of all of them."""
        return sum(node.size for node in self.nodes)


class _Level(Generic[T]):
    """The nodes of one level that wait for their group.

    `put` and `close` yield the groups that are complete: the group's number, and its nodes
    without those that were lost.
    """

    def __init__(self, fan_in: int | None, limit: int | None) -> None:
        self.total: int | None = None
        self.above: int | None = None
        self._fan_in = fan_in
        self._limit = limit
        self._waiting: dict[int, Node[T] | None] = {}
        self._groups = 0
        # Of groups that are known beforehand: how many nodes of each are settled.
        self._settled: dict[int, int] = {}
        # Of groups that are filled in order: the next node, and the group that is being filled.
        self._cursor = 0
        self._open: list[Node[T]] = []
        self._open_size = 0

    @property
    def settled(self) -> bool:
        """True if the first node is there, or was lost."""
        return 0 in self._waiting or self._cursor > 0

    def only(self) -> Node[T] | None:
        """Return the first node; `None` if it was lost."""
        return self._open[0] if self._open else self._waiting.get(0)

    def put(self, number: int, node: Node[T] | None) -> Iterator[tuple[int, list[Node[T]]]]:
        """Add a node, or `None` for one that was lost."""
        self._waiting[number] = node
        if self._limit is not None:
            yield from self._fill()
            return
        assert self._fan_in is not None
        group = number // self._fan_in
        self._settled[group] = self._settled.get(group, 0) + 1
        yield from self._complete(group)

    def close(self, total: int) -> Iterator[tuple[int, list[Node[T]]]]:
        """Take note of how many nodes there are in all."""
        self.total = total
        if self._limit is not None:
            yield from self._fill()
            return
        assert self._fan_in is not None
        self.above = -(-total // self._fan_in)
        if total % self._fan_in:
            yield from self._complete(self.above - 1)

    def _complete(self, group: int) -> Iterator[tuple[int, list[Node[T]]]]:
        assert self._fan_in is not None
        start, size = group * self._fan_in, self._fan_in
        if self.total is not None:
            size = min(size, self.total - start)
        if self._settled.get(group, 0) < size:
            return
        del self._settled[group]
        nodes = [self._waiting.pop(number) for number in range(start, start + size)]
        yield group, [node for node in nodes if node is not None]

    def _fill(self) -> Iterator[tuple[int, list[Node[T]]]]:
        assert self._limit is not None
        while self._cursor in self._waiting:
            node = self._waiting.pop(self._cursor)
            self._cursor += 1
            if node is None:
                continue
            if self._open and self._open_size + node.size > self._limit:
                yield self._shut()
            self._open.append(node)
            self._open_size += node.size
            if len(self._open) == self._fan_in:
                yield self._shut()
        if self._cursor == self.total:
            if self._open:
                yield self._shut()
            self.above = self._groups

    def _shut(self) -> tuple[int, list[Node[T]]]:
        number, nodes = self._groups, self._open
        self._groups += 1
        self._open, self._open_size = [], 0
        return number, nodes


class TreePlan(Generic[T]):
    """Takes leaves and reduced nodes, and says which group is to be reduced next.

    A lone node above the leaves is handed up as it is: it has been reduced before. A lone leaf is
    reduced, so that the tree's result always is.

    Args:
        fan_in: Nodes of a group at most, two or more; `None` for as many as the limit allows.
        limit: Tokens of a group at most; `None` for no limit. Then every leaf must be within it,
            and every reduced node within half of it, so that two always fit.

    Attributes:
        limit: As given; may be changed before the first leaf.
        finished: True once there is nothing more to reduce.
        root: What everything was reduced to; `None` if all was lost, or nothing was there.
        depth: Level of the root.
    """

    def __init__(self, *, fan_in: int | None = None, limit: int | None = None) -> None:
        if fan_in is None and limit is None:
            raise ValueError("a tree needs a fan-in or a limit")
        self.finished = False
        self.root: Node[T] | None = None
        self.depth = 0
        self._fan_in = fan_in
        self.limit = limit
        self._levels: list[_Level[T]] = []
        self._ready: deque[Group[T]] = deque()
        self._leaves = 0

    def add(self, leaf: Node[T] | None) -> None:
        """Add the next leaf, or `None` for one that was lost."""
        self._leaves += 1
        self._put(0, self._leaves - 1, leaf)

    def close(self) -> None:
        """There are no more leaves."""
        self._close(0, self._leaves)

    def take(self) -> Group[T] | None:
        """Return a group that is to be reduced; `None` if there is none just now."""
        return self._ready.popleft() if self._ready else None

    def done(self, group: Group[T], content: T, size: int) -> None:
        """A group was reduced.

        Args:
            group: The group.
            content: What it became.
            size: Size of that, in tokens; never taken for more than half the limit.
        """
        if self.limit is not None:
            size = min(size, self.limit // 2)
        node = Node(content, size, group.nodes[0].first, group.nodes[-1].last)
        self._put(group.level, group.number, node)

    def lost(self, group: Group[T]) -> None:
        """A group could not be reduced: what is under it is left out."""
        self._put(group.level, group.number, None)

    def _level(self, level: int) -> _Level[T]:
        while len(self._levels) <= level:
            self._levels.append(_Level(self._fan_in, self.limit))
        return self._levels[level]

    def _put(self, level: int, number: int, node: Node[T] | None) -> None:
        at = self._level(level)
        if level and at.total == 1:
            self._finish(level, node)
            return
        for group in at.put(number, node):
            self._group(level + 1, *group)
        self._pass_on(level)

    def _close(self, level: int, total: int) -> None:
        at = self._level(level)
        if total == 0:
            self._finish(level, None)
            return
        if level and total == 1:
            at.total = 1
            if at.settled:
                self._finish(level, at.only())
            return
        for group in at.close(total):
            self._group(level + 1, *group)
        self._pass_on(level)

    def _pass_on(self, level: int) -> None:
        """Close the level above once it is known how many nodes it will have."""
        above = self._levels[level].above
        if above is not None and not self.finished and self._level(level + 1).total is None:
            self._close(level + 1, above)

    def _group(self, level: int, number: int, nodes: list[Node[T]]) -> None:
        if not nodes:
            self._put(level, number, None)
        elif len(nodes) == 1 and level > 1:
            self._put(level, number, nodes[0])
        else:
            self._ready.append(Group(level, number, tuple(nodes)))

    def _finish(self, level: int, root: Node[T] | None) -> None:
        self.finished = True
        self.root, self.depth = root, level
