from __future__ import annotations

import datetime
import enum
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from scaleinfer.data import END, open_writer, read_items, result_row
from scaleinfer.errors import ConfigError, RateLimited
from scaleinfer.results import Result, Usage

if TYPE_CHECKING:
    from pathlib import Path

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
encodable = st.text(st.characters(exclude_categories=["Cs"]))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with open_writer(path) as writer:
        for row in rows:
            writer.write(row)


def read(path: Path) -> list[Any]:
    return list(iter(read_items(path).next_nowait, END))


@given(rows=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4))
def test_jsonl_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("w") / "a.jsonl"
    write(path, rows)
    # Infinity has no place in JSON and becomes null, as NaN does.
    assert read(path) == [finite(row) for row in rows]


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if value in (float("inf"), float("-inf")) else value


@given(
    columns=st.lists(encodable.filter(bool), min_size=2, max_size=4, unique=True),
    data=st.data(),
)
def test_csv_gives_back_the_strings_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, columns: list[str], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, encodable)), max_size=4))
    path = tmp_path_factory.mktemp("w") / "a.csv"
    write(path, rows)
    assert read(path) == rows


def test_csv_writes_other_values_as_json(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write(path, [{"a": None, "b": {"x": [1, "é"]}, "c": True, "d": 0.5, "e": float("nan")}])
    assert read(path) == [{"a": "", "b": '{"x":[1,"é"]}', "c": "true", "d": "0.5", "e": ""}]


def test_csv_keeps_the_first_rows_columns(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.csv") as writer:
        writer.write({"a": 1, "b": 2})
        writer.write({"b": 3})
        with pytest.raises(ValueError, match="no column c"):
            writer.write({"c": 1})
    assert read(tmp_path / "a.csv")[1] == {"a": "", "b": "3"}


def test_parquet_types_come_from_all_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = [
        {"id": n, "ok": n > 5, "mixed": n, "cost": n, "value": {"n": n}, "none": None}
        for n in range(2000)
    ]
    rows[-1] |= {"mixed": "text \ud800", "cost": 0.5, "late": "here"}
    path = tmp_path / "a.parquet"
    write(path, rows)
    schema = parquet.read_schema(path)
    assert dict(zip(schema.names, map(str, schema.types), strict=True)) == {
        "id": "int64",
        "ok": "bool",
        "mixed": "string",
        "cost": "double",
        "value": "string",
        "none": "string",
        "late": "string",
    }
    found = read(path)
    assert len(found) == 2000
    assert found[3] == {
        "id": 3, "ok": False, "mixed": "3", "cost": 3.0, "value": '{"n":3}', "none": None,
        "late": None,
    }  # fmt: skip
    assert (found[-1]["mixed"], found[-1]["late"]) == ("text ?", "here")
    assert os.listdir(tmp_path) == ["a.parquet"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_no_rows_make_an_empty_file(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [])
    assert read(tmp_path / name) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_file_takes_its_name_only_when_complete(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    writer = open_writer(path)
    writer.write({"a": 1})
    assert path.read_text() == "old"
    writer.close(commit=False)
    writer.close()
    assert path.read_text() == "old"
    with pytest.raises(ZeroDivisionError), open_writer(path) as writer:
        writer.write({"a": 1 / 0})
    assert os.listdir(tmp_path) == [name]
    write(path, [{"a": 1}])
    assert read(path) in ([{"a": 1}], [{"a": "1"}])
    assert os.listdir(tmp_path) == [name]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    write(tmp_path / "link.jsonl", [{"a": 1}])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert read(tmp_path / "real.jsonl") == [{"a": 1}]


def test_what_cannot_be_written_is_refused_at_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"Known: \.jsonl, \.csv, \.parquet"):
        open_writer(tmp_path / "a.xlsx")
    with pytest.raises(ConfigError, match="no folder"):
        open_writer(tmp_path / "missing" / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        open_writer(tmp_path / "b.jsonl")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'scaleinfer\[data\]'"):
        open_writer(tmp_path / "a.parquet")


class Colour(enum.StrEnum):
    RED = "red"


class Verdict(BaseModel):
    soluble: bool
    when: datetime.date
    colour: Colour


def test_the_row_of_a_result(tmp_path: Path) -> None:
    verdict = Verdict(soluble=True, when=datetime.date(2026, 1, 2), colour=Colour.RED)
    result = Result("k", 3, {"id": 7, "doi": "10.1/x"}, ok=True, text="{}", value=verdict)
    result.usage = Usage(5, 6, 0, 1)
    row = result_row(result)
    assert row["id"] == 7
    assert row["value"] == {"soluble": True, "when": "2026-01-02", "colour": "red"}
    assert row["error"] is None
    assert row["usage"] == {"prompt_tokens": 5, "completion_tokens": 6}
    assert result_row(result, id_field="doi")["id"] == "10.1/x"
    result.value = {"a": verdict, "b": "text", "c": Colour.RED}
    assert result_row(result)["value"] == {"a": row["value"], "b": "text", "c": "red"}


def test_a_failed_result_has_the_same_columns(tmp_path: Path) -> None:
    good = Result("k", 0, "CCO", ok=True, text="yes", value="yes")
    bad = Result("l", 1, None, error=RateLimited("slow down", hint="Wait.", index=1))
    rows = [result_row(good), result_row(bad)]
    assert rows[0].keys() == rows[1].keys()
    assert rows[1]["error"] == {"type": "RateLimited", "message": "item 1: slow down Wait."}
    assert [row["id"] for row in rows] == [None, None]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        write(tmp_path / name, rows)
        assert len(read(tmp_path / name)) == 2
    assert read(tmp_path / "a.jsonl") == rows
