from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.data import END, read_items
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def items(path: Path, **options: Any) -> list[Any]:
    return list(iter(read_items(path, **options).next_nowait, END))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl_holds_any_value_and_skips_empty_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '\ufeff{"a": 1}\n\n"text"\r\n[1, NaN]\n  \n42')
    read = read_items(file)
    assert read.total == 4
    found = list(iter(read.next_nowait, END))
    assert found[:2] == [{"a": 1}, "text"]
    assert found[2][1] != found[2][1]
    assert found[3] == 42


def test_long_integers_keep_their_digits(tmp_path: Path) -> None:
    number = 123456789012345678901234567890
    assert items(write(tmp_path / "a.jsonl", f'{{"id": {number}}}')) == [{"id": number}]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    read = read_items(write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": \n{"a": 2}\n'))
    assert read.next_nowait() == {"a": 1}
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 3: not JSON"):
        read.next_nowait()


def test_json_is_a_list_or_lines(tmp_path: Path) -> None:
    listed = read_items(write(tmp_path / "a.json", '\n [{"a": 1},\n {"a": 2}]\n'))
    assert listed.total == 2
    assert list(iter(listed.next_nowait, END)) == [{"a": 1}, {"a": 2}]
    assert items(write(tmp_path / "b.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    assert items(write(tmp_path / "c.json", "")) == []
    with pytest.raises(ConfigError, match="starts as a JSON list"):
        items(write(tmp_path / "d.json", "[1]\n[2]\n"))
    with pytest.raises(ConfigError, match="may also hold one list"):
        items(write(tmp_path / "e.json", '{\n "a": 1\n}\n'))


def test_csv_with_bom_quotes_and_long_fields(tmp_path: Path) -> None:
    long = "x" * 300_000
    file = write(tmp_path / "a.csv", f'\ufeffid,text\r\n1,"a ""b"",\nc"\r\n\r\n2,{long}\r\n')
    assert read_items(file).total == 2
    assert items(file) == [{"id": "1", "text": 'a "b",\nc'}, {"id": "2", "text": long}]
    assert items(write(tmp_path / "a.tsv", "id\ttext\n1\ta,b\n")) == [{"id": "1", "text": "a,b"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n3\n", "line 3: 1 fields where the header has 2"),
        ("a,b\n1,2,3\n", "line 2: 3 fields"),
        ("a,a\n1,2\n", "more than one column is named 'a'"),
        ('a,b\n1,"2\n3,4\n', "line 3: unexpected end of data"),
        (b"a,b\n1,2\n\xff,4\n", "line 3: byte 1 is not UTF-8"),
    ],
)
def test_a_broken_csv_is_refused_by_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        items(write(tmp_path / "a.csv", content))


def test_text_lines(tmp_path: Path) -> None:
    expected = [{"text": "CCO"}, {"text": " C "}]
    for name in ("a.txt", "a.smi", "plain"):
        file = write(tmp_path / name, "CCO\r\n\n C \n")
        assert items(file) == expected
        assert read_items(file).total == 2
    with pytest.raises(ConfigError, match="NUL byte"):
        items(write(tmp_path / "a.npy", b"ab\0c\n"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json", "a.ndjson", "a.tsv"])
def test_an_empty_file_has_no_items(tmp_path: Path, name: str) -> None:
    assert items(write(tmp_path / name, "")) == []


def test_gzip(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    read = read_items(file)
    assert read.total is None
    assert list(iter(read.next_nowait, END)) == [{"a": 1}, {"a": 2}]
    assert items(write(tmp_path / "b.json.gz", gzip.compress(b"[1, 2]"))) == [1, 2]
    with pytest.raises(ConfigError, match="damaged after line"):
        items(write(tmp_path / "c.jsonl.gz", file.read_bytes()[:-10]))
    with pytest.raises(ConfigError, match="damaged after line 0"):
        items(write(tmp_path / "d.csv.gz", "a,b\n1,2\n"))


def test_the_format_may_be_given(tmp_path: Path) -> None:
    assert items(write(tmp_path / "a.dat", "a,b\n1,2\n"), format="csv") == [{"a": "1", "b": "2"}]
    with pytest.raises(ConfigError, match="no input format 'xml'"):
        read_items(tmp_path / "a.dat", format="xml")


def test_a_file_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read_items(tmp_path / "missing.jsonl")
    with pytest.raises(ConfigError, match="is a folder"):
        read_items(tmp_path)


def test_parquet_in_batches(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"a": list(range(3000)), "b": ["x", None, "z"] * 1000}), file)
    read = read_items(file)
    assert read.total == 3000
    assert next(iter(read.next_nowait, END)) == {"a": 0, "b": "x"}
    assert len(items(file)) == 3000
    with pytest.raises(ConfigError, match="no Parquet file"):
        read_items(write(tmp_path / "b.parquet", "not parquet"))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'scaleinfer\[data\]'"):
        read_items(write(tmp_path / "a.parquet", ""))


class FakeStdin:
    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number


def from_pipe(monkeypatch: pytest.MonkeyPatch, content: str, format: str | None) -> list[Any]:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, content.encode())
        os.close(write_end)
        monkeypatch.setattr(sys, "stdin", FakeStdin(read_end))
        read = read_items("-", format=format)
        assert not read.nowait

        async def drain() -> list[Any]:
            return [item async for item in read]

        return asyncio.run(asyncio.wait_for(drain(), 10))
    finally:
        os.close(read_end)


@pytest.mark.parametrize(
    ("content", "format", "expected"),
    [
        ('\n{"a": 1}\n{"a": 2}\n', None, [{"a": 1}, {"a": 2}]),
        ('"x"\n"y"\n', None, ["x", "y"]),
        ("[1, 2]\n[3]\n", None, [[1, 2], [3]]),
        ('[\n {"a": 1},\n {"a": 2}\n]\n', None, [{"a": 1}, {"a": 2}]),
        ('[{"a": 1}, {"a": 2}]', "json", [{"a": 1}, {"a": 2}]),
        ("[Na+].[Cl-]\nCCO\n", None, [{"text": "[Na+].[Cl-]"}, {"text": "CCO"}]),
        ("a,b\n1,2\n", "csv", [{"a": "1", "b": "2"}]),
        ("", None, []),
    ],
)
def test_standard_input_is_told_by_its_first_line(
    monkeypatch: pytest.MonkeyPatch, content: str, format: str | None, expected: list[Any]
) -> None:
    assert from_pipe(monkeypatch, content, format) == expected


def test_a_broken_object_on_standard_input_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="standard input, line 1: not JSON"):
        from_pipe(monkeypatch, '{"a": \n', None)


def test_standard_input_from_a_file_or_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with write(tmp_path / "a", json.dumps({"a": 1})).open() as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        read = read_items("-")
        assert read.nowait
        assert read.next_nowait() == {"a": 1}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"CCO\n")))
    assert read_items("-").next_nowait() == {"text": "CCO"}
    with pytest.raises(ConfigError, match="Parquet cannot"):
        read_items("-", format="parquet")
