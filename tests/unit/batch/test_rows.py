"""Packing rows into files: nothing is lost, nothing doubled, every limit kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.batch import Row
from scaleinfer.batch._rows import Pack, Packer, custom_id_of
from scaleinfer.requests import Request


def row(number: int, occurrence: int = 0) -> Row:
    request = Request([{"role": "user", "content": f"{number}"}])
    return Row(number.to_bytes(16, "big"), occurrence, f"k{number}", "", number, request)


def drained(packer: Packer) -> list[Pack]:
    packs = []
    while (pack := packer.take(rest=True)) is not None:
        packs.append(pack)
    return packs


@given(
    sizes=st.lists(st.tuples(st.integers(1, 120), st.sampled_from("ab")), max_size=60),
    max_rows=st.integers(1, 10),
    max_bytes=st.integers(1, 300),
)
def test_every_row_is_in_one_pack_and_every_limit_is_kept(
    sizes: list[tuple[int, str]], max_rows: int, max_bytes: int
) -> None:
    packer = Packer(max_rows, max_bytes)
    rows = [row(number) for number in range(len(sizes))]
    taken = [
        packer.add(one, group, b"x" * size) for one, (size, group) in zip(rows, sizes, strict=True)
    ]
    assert taken == [size <= max_bytes for size, _ in sizes]
    assert packer.waiting == sum(taken)
    packs = drained(packer)
    for pack in packs:
        assert 0 < len(pack.rows) <= max_rows
        assert pack.size == sum(map(len, pack.lines)) <= max_bytes
        assert all(sizes[one.index][1] == pack.group for one in pack.rows)
    for group in "ab":
        order = [one.index for pack in packs if pack.group == group for one in pack.rows]
        wanted = [
            n for n, (size, other) in enumerate(sizes) if other == group and size <= max_bytes
        ]
        assert order == wanted
    assert packer.waiting == 0


def test_only_full_packs_are_taken_before_the_end() -> None:
    packer = Packer(2, 1000)
    for number in range(3):
        packer.add(row(number), "a", b"line\n")
    first = packer.take(rest=False)
    assert first is not None
    assert [one.index for one in first.rows] == [0, 1]
    assert packer.take(rest=False) is None
    assert packer.waiting == 1


@given(sizes=st.lists(st.integers(1, 50), min_size=2, max_size=40))
def test_a_refused_pack_comes_back_in_smaller_ones_first(sizes: list[int]) -> None:
    packer = Packer(100, 10_000)
    for number, size in enumerate(sizes):
        packer.add(row(number), "a", b"x" * size)
    refused = packer.take(rest=True)
    assert refused is not None
    packer.add(row(999), "a", b"later")
    assert packer.shrink(refused)
    assert packer.give_back(refused) == []
    packs = drained(packer)
    assert [one.index for pack in packs for one in pack.rows] == [*range(len(sizes)), 999]
    assert all(len(pack.rows) < len(sizes) for pack in packs)


def test_one_row_cannot_be_split() -> None:
    packer = Packer(10, 100)
    packer.add(row(1), "a", b"line")
    pack = packer.take(rest=True)
    assert pack is not None
    assert not packer.shrink(pack)


def test_a_rows_name_says_what_it_answers() -> None:
    one, again = row(7, occurrence=2), row(7, occurrence=2)
    again.repairs = 1
    assert one.custom_id == f"{one.identity.hex()}-2-0"
    assert again.custom_id != one.custom_id
    assert again.slot == one.slot
    assert custom_id_of(one.member) == one.custom_id
    assert len(one.custom_id) <= 64  # what OpenAI allows
