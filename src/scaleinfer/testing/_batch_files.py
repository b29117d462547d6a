"""What a batch API is sent: multipart forms, and the lines of an input file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from scaleinfer.testing._batch_life import BatchRow

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FormPart", "form_parts", "read_rows"]

_NAME = re.compile(rb'[; ]name="([^"]*)"', re.IGNORECASE)
_FILENAME = re.compile(rb'[; ]filename="([^"]*)"', re.IGNORECASE)
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)


class FormPart(NamedTuple):
    """One field of a form."""

    name: str
    filename: str | None
    data: bytes


def form_parts(content_type: str, body: bytes) -> Iterator[FormPart]:
    """Yield the fields of a `multipart/form-data` body; nothing if it is none."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        return
    line = b"--" + found[1].encode()
    for part in (b"\r\n" + body).split(b"\r\n" + line)[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if name is not None:
            filename = _FILENAME.search(head)
            yield FormPart(
                name[1].decode(), None if filename is None else filename[1].decode(), data
            )


def read_rows(
    data: bytes, endpoint: str, max_rows: int
) -> tuple[list[BatchRow], list[dict[str, Any]]]:
    """Return the rows of an input file and what is wrong with it, as OpenAI says it.

    Args:
        data: The file.
        endpoint: The route that every row must be for.
        max_rows: More are an error.
    """
    rows: list[BatchRow] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    models: set[str] = set()
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            known = BatchRow(str(row["custom_id"]), row["url"], dict(row["body"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            errors.append(_error("invalid_json_line", "This line is not parseable.", number))
            continue
        models.add(str(known.body.get("model") or ""))
        if known.url != endpoint:
            message = f"The URL provided for this request does not match {endpoint}."
            errors.append(_error("invalid_url", message, number))
        elif known.custom_id in seen:
            message = f"The custom_id {known.custom_id} was used before."
            errors.append(_error("duplicate_custom_id", message, number))
        elif len(models) > 1:
            message = "All requests of a batch must be for one model."
            errors.append(_error("mismatched_model", message, number))
        seen.add(known.custom_id)
        rows.append(known)
    if not rows and not errors:
        errors.append(_error("empty_file", "The input file is empty.", None))
    if len(rows) > max_rows:
        message = f"A batch holds at most {max_rows} requests; this file has {len(rows)}."
        errors.append(_error("too_many_tasks", message, None))
    return rows, errors


def _error(code: str, message: str, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": line}
