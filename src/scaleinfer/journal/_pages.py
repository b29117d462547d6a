"""SQLite's file format, as far as rows can be read from it without SQLite.

Leaf pages of tables, overflow chains and the write-ahead log, after
https://www.sqlite.org/fileformat2.html. Nothing here trusts what it reads: a page that makes no
sense yields no rows.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAGIC", "Header", "Pages", "Wal", "table_rows"]

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
_LEAF = 0x0D
_WAL_HEADER = 32
_FRAME_HEADER = 24
_MAX_COLUMNS = 32
_MAX_ROW = 1 << 30


@dataclass(frozen=True, slots=True)
class Header:
    """The first 100 bytes of a database.

    Attributes:
        page_size: In bytes.
        page_count: Pages of the database when its header was last written; 0 if unknown.
        wal: True if the file was left in write-ahead mode.
        user_version: The format's number.
        application_id: Whose file it is.
    """

    page_size: int
    page_count: int
    wal: bool
    user_version: int
    application_id: int

    @classmethod
    def parse(cls, head: bytes) -> Header:
        """Read the header; `head` holds at least 100 bytes."""
        size = int.from_bytes(head[16:18], "big")
        changed, count = struct.unpack_from(">II", head, 24)
        (valid_for,) = struct.unpack_from(">I", head, 92)
        user_version, _, application_id = struct.unpack_from(">III", head, 60)
        return cls(
            page_size=65536 if size == 1 else size,
            page_count=count if changed == valid_for else 0,
            wal=head[18] == 2 or head[19] == 2,  # noqa: PLR2004 the format's number for it
            user_version=user_version,
            application_id=application_id,
        )


class Wal:
    """A write-ahead log: which frames count, and whether it was harmed.

    Attributes:
        page_size: In bytes; 0 if the log's header makes no sense.
        committed: Page number -> offset of its newest committed content.
        page_count: Pages of the database after the last commit; 0 without one.
        damaged: True if frames lie beyond a broken one that can only have been written after
            that one was safely on disk: more is missing than a torn end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.page_size = 0
        self.committed: dict[int, int] = {}
        self.page_count = 0
        self.damaged = False
        head = file.read(_WAL_HEADER)
        if len(head) < _WAL_HEADER:
            return
        magic, _, size, _ = struct.unpack_from(">IIII", head)
        if magic & ~1 != 0x377F0682 or size < 512 or size & (size - 1):  # noqa: PLR2004
            return
        self.page_size = size
        self._swap = (sys.byteorder == "big") != bool(magic & 1)
        self._salt = head[16:24]
        self._sums = self._checksum(head[:24], (0, 0))
        if self._sums == struct.unpack_from(">II", head, 24):
            self._follow()
        else:
            self.damaged = any(salt == self._salt for _, _, salt, _ in self.frames())

    def frames(self) -> Iterator[tuple[int, int, bytes, int]]:
        """Yield page number, database size if a commit, salt and content's offset of each frame."""
        offset = _WAL_HEADER
        while self.page_size:
            self.file.seek(offset)
            head = self.file.read(_FRAME_HEADER)
            if len(head) < _FRAME_HEADER:
                return
            number, size = struct.unpack_from(">II", head)
            yield number, size, head[8:16], offset + _FRAME_HEADER
            offset += _FRAME_HEADER + self.page_size

    def trust_all(self) -> None:
        """Take every frame of the log's current round for committed, however it looks.

        For salvage only, where each row's digest decides.
        """
        for number, _, salt, offset in self.frames():
            if salt == self._salt:
                self.committed[number] = offset

    def content(self, offset: int) -> bytes:
        """Return the page that starts at `offset`, filled with zeros if the log ends in it."""
        self.file.seek(offset)
        return self.file.read(self.page_size).ljust(self.page_size, b"\0")

    def _follow(self) -> None:
        """Walk the frames as SQLite's recovery does, then look at what lies beyond."""
        pending: dict[int, int] = {}
        broken = False
        commits_beyond = 0
        for number, size, salt, offset in self.frames():
            if not broken and salt == self._salt and self._valid(offset):
                pending[number] = offset
                if size:
                    self.committed |= pending
                    self.page_count = size
                    pending.clear()
                continue
            broken = True
            # A commit is written only after the one before it was synced. One broken commit is
            # a torn end; frames after that commit mean that synced content is gone.
            if salt == self._salt:
                if commits_beyond:
                    self.damaged = True
                    return
                commits_beyond += size > 0

    def _valid(self, offset: int) -> bool:
        self.file.seek(offset - _FRAME_HEADER)
        frame = self.file.read(_FRAME_HEADER + self.page_size)
        if len(frame) < _FRAME_HEADER + self.page_size:
            return False
        sums = self._checksum(frame[:8], self._sums)
        sums = self._checksum(frame[_FRAME_HEADER:], sums)
        if sums != struct.unpack_from(">II", frame, 16):
            return False
        self._sums = sums
        return True

    def _checksum(self, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
        words = array("I", data)
        if self._swap:
            words.byteswap()
        first, second = sums
        pairs = iter(words)
        for even, odd in zip(pairs, pairs, strict=True):
            first = (first + even + second) & 0xFFFFFFFF
            second = (second + odd + first) & 0xFFFFFFFF
        return first, second


class Pages:
    """The pages of a database that may be harmed, its log's committed pages laid over them."""

    def __init__(self, file: BinaryIO, wal: Wal | None, fallback_page_size: int) -> None:
        self._file = file
        self._wal = wal if wal is not None and wal.page_size else None
        head = file.read(HEADER_BYTES)
        self.page_size = fallback_page_size
        self.reserved = 0
        if self._wal is not None:
            self.page_size = self._wal.page_size
        elif len(head) == HEADER_BYTES and head.startswith(MAGIC):
            self.page_size = Header.parse(head).page_size or fallback_page_size
            self.reserved = head[20]
        file.seek(0, 2)
        self._count = -(-file.tell() // self.page_size)

    @property
    def usable(self) -> int:
        """Bytes of a page that hold content."""
        return self.page_size - self.reserved

    def every(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and content of every page there is, old versions in the log included."""
        for number in range(1, self._count + 1):
            yield number, self._stored(number)
        if self._wal is not None:
            for number, _, _, offset in list(self._wal.frames()):
                yield number, self._wal.content(offset)

    def page(self, number: int) -> bytes:
        """Return the newest committed content of a page; zeros where the file ends."""
        if self._wal is not None and number in self._wal.committed:
            return self._wal.content(self._wal.committed[number])
        return self._stored(number)

    def _stored(self, number: int) -> bytes:
        self._file.seek((number - 1) * self.page_size)
        return self._file.read(self.page_size).ljust(self.page_size, b"\0")

    def overflow(self, number: int, wanted: int) -> bytes | None:
        """Return `wanted` bytes of the chain that starts at page `number`; `None` if it breaks."""
        parts = []
        room = self.usable - 4
        logged = len(self._wal.committed) if self._wal is not None else 0
        if wanted > room * (self._count + logged):  # or a chain that bites its tail never ends
            return None
        while wanted > 0:
            if number == 0 or (number > self._count and not self._logged(number)):
                return None
            page = self.page(number)
            part = page[4 : 4 + min(room, wanted)]
            parts.append(part)
            wanted -= len(part)
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)

    def _logged(self, number: int) -> bool:
        return self._wal is not None and number in self._wal.committed


def table_rows(pages: Pages) -> Iterator[tuple[int, list[Any]]]:
    """Yield row number and columns of every cell on anything that looks like a table's leaf.

    Integers and floats come as such, text and blobs as bytes. Rows may come more than once and
    in old versions; a caller keeps those whose digest is right.
    """
    for number, page in pages.every():
        start = HEADER_BYTES if number == 1 else 0
        if page[start] != _LEAF:
            continue
        cells = int.from_bytes(page[start + 3 : start + 5], "big")
        first = start + 8
        for at in range(first, min(first + 2 * cells, pages.usable - 1), 2):
            row = _cell(pages, page, int.from_bytes(page[at : at + 2], "big"))
            if row is not None:
                yield row


def _cell(pages: Pages, page: bytes, offset: int) -> tuple[int, list[Any]] | None:
    try:
        size, offset = _varint(page, offset)
        rowid, offset = _varint(page, offset)
        usable = pages.usable
        most, least = usable - 35, (usable - 12) * 32 // 255 - 23
        if size > _MAX_ROW:
            return None
        if size <= most:
            return rowid, _record(page[offset : offset + size])
        local = least + (size - least) % (usable - 4)
        local = local if local <= most else least
        (chain,) = struct.unpack_from(">I", page, offset + local)
        rest = pages.overflow(chain, size - local)
        if rest is None:
            return None
        return rowid, _record(page[offset : offset + local] + rest)
    except (IndexError, ValueError, struct.error):
        return None


def _record(data: bytes) -> list[Any]:
    end, at = _varint(data, 0)
    types = []
    while at < end:
        kind, at = _varint(data, at)
        types.append(kind)
        if len(types) > _MAX_COLUMNS:
            raise ValueError("more columns than any table of ours")
    values = []
    for kind in types:
        value, end = _value(data, end, kind)
        values.append(value)
    return values


_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_REAL, _ZERO, _ONE, _BYTES = 7, 8, 9, 12


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == 0:
        return None, at
    if kind in _INTEGER_BYTES:
        width = _INTEGER_BYTES[kind]
        return int.from_bytes(data[at : at + width], "big", signed=True), at + width
    if kind == _REAL:
        return struct.unpack_from(">d", data, at)[0], at + 8
    if kind in {_ZERO, _ONE}:
        return kind - _ZERO, at
    if kind < _BYTES:
        raise ValueError("a kind of value that no file holds")
    width = (kind - _BYTES) // 2
    if at + width > len(data):
        raise ValueError("the record ends before its value")
    return data[at : at + width], at + width


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for step in range(8):
        byte = data[at + step]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004 the bit that says more follow
            return value, at + step + 1
    return value << 8 | data[at + 8], at + 9
