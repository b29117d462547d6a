"""One request on its way through a batch, and the packing of many into input files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scaleinfer.journal import BatchMember

if TYPE_CHECKING:
    from scaleinfer.requests import Request

__all__ = ["Pack", "Packer", "Row", "Slot", "custom_id_of"]


Slot = tuple[bytes, int]
"""What a question is known by in the journal: its identity and its occurrence."""


def custom_id_of(member: BatchMember) -> str:
    """Return a row's name in input and output files, the same in every process.

    It is made of what the journal knows the question by, so that whoever finds it in an output
    file knows what it answers.
    """
    return f"{member.identity.hex()}-{member.occurrence}-{member.repairs}"


@dataclass(slots=True, eq=False)
class Row:
    """A question that goes into a batch.

    Attributes:
        identity: 16 bytes, as in the journal.
        occurrence: Counts questions of equal identity.
        key: The item's key.
        question: Name of the question if the item asks several.
        index: The item's position in the input.
        request: What to ask; a repair once a bad answer came.
        owner: Whatever whoever added the row wants to find again.
        repairs: How often a bad answer was shown to the model.
        sent: How often the row was in a batch that has ended.
    """

    identity: bytes
    occurrence: int
    key: str
    question: str
    index: int
    request: Request
    owner: Any = None
    repairs: int = 0
    sent: int = 0

    @property
    def custom_id(self) -> str:
        """Its name in input and output files."""
        return custom_id_of(self.member)

    @property
    def slot(self) -> Slot:
        """What the journal knows it by."""
        return self.identity, self.occurrence

    @property
    def member(self) -> BatchMember:
        """What the journal keeps of it with a batch."""
        return BatchMember(
            self.identity, self.occurrence, self.repairs, self.key, self.question, self.index
        )


@dataclass(slots=True)
class Pack:
    """Rows that are to become one batch.

    Attributes:
        group: What they have in common.
        rows: The rows.
        lines: Their lines of the input file.
        size: Bytes of these.
    """

    group: str
    rows: list[Row] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0


class Packer:
    """Splits rows into packs that an endpoint takes, in the order they come.

    Args:
        max_rows: Rows of a pack; may become less, see `shrink`.
        max_bytes: Bytes of its lines; likewise.

    Attributes:
        waiting: Rows in packs that were not taken yet.
    """

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_rows, self.max_bytes = max_rows, max_bytes
        self.waiting = 0
        self._growing: dict[str, Pack] = {}
        self._full: list[Pack] = []

    def add(self, row: Row, group: str, line: bytes) -> bool:
        """Put a row into a pack of its group; False if it is too large for any."""
        if len(line) > self.max_bytes:
            return False
        pack = self._growing.get(group)
        if pack is not None and (
            len(pack.rows) >= self.max_rows or pack.size + len(line) > self.max_bytes
        ):
            self._full.append(pack)
            pack = None
        if pack is None:
            pack = self._growing[group] = Pack(group)
        pack.rows.append(row)
        pack.lines.append(line)
        pack.size += len(line)
        self.waiting += 1
        return True

    def take(self, *, rest: bool) -> Pack | None:
        """Return a full pack; with `rest` one that is not full too; `None` if there is none."""
        for group, pack in list(self._growing.items()):
            if rest or len(pack.rows) >= self.max_rows:
                self._full.append(self._growing.pop(group))
        if not self._full:
            return None
        pack = self._full.pop(0)
        self.waiting -= len(pack.rows)
        return pack

    def give_back(self, pack: Pack) -> list[Row]:
        """Take a pack back, split again if the limits are lower now.

        Returns:
            Rows that are too large for any pack now.
        """
        again = Packer(self.max_rows, self.max_bytes)
        refused = [
            row
            for row, line in zip(pack.rows, pack.lines, strict=True)
            if not again.add(row, pack.group, line)
        ]
        parts = []
        while (part := again.take(rest=True)) is not None:
            parts.append(part)
        self._full[:0] = parts
        self.waiting += sum(len(part.rows) for part in parts)
        return refused

    def shrink(self, pack: Pack) -> bool:
        """Lower the limits, because this pack was too much; False if it is one row only."""
        if len(pack.rows) == 1:
            return False
        self.max_bytes = min(self.max_bytes, max(pack.size // 2, *map(len, pack.lines)))
        self.max_rows = min(self.max_rows, -(-len(pack.rows) // 2))
        return True
