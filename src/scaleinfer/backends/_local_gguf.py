"""GGUF files: read a header without any library, re-encode Q4_1 weights as Q8_0."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GgufHeader", "check_whole", "read_header", "reencode_q8_0"]

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_LONGEST_STRING = 1 << 24
# Bytes that 256 values take, by tensor type; ggml's block sizes.
_BYTES_OF_256 = {
    0: 1024, 1: 512, 2: 144, 3: 160, 6: 176, 7: 192, 8: 272, 10: 84, 11: 110, 12: 144,
    13: 176, 14: 210, 30: 512,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the engine has to know of a model before it loads it.

    Attributes:
        architecture: `llama`, `qwen2`, ...
        context_length: Tokens of prompt and answer together.
        kv_values_per_token: Numbers the KV cache holds for one token.
    """

    architecture: str
    context_length: int
    kv_values_per_token: int


def read_header(path: Path) -> GgufHeader:
    """Read the model's dimensions; stops at the tokenizer, so it takes milliseconds.

    Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

    Raises:
        ConfigError: The file is missing, is no GGUF file, is cut short, or holds no language
            model.
    """
    try:
        with path.open("rb") as file:
            fields = _model_fields(file)
        return _header(fields)
    except FileNotFoundError:
        raise ConfigError(f"There is no model file {path}.") from None
    except (OSError, struct.error, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a readable GGUF model ({_reason(error)}).",
            hint="Set SCALEINFER_LOCAL_MODEL to a whole .gguf file of a language model.",
        ) from None


def check_whole(path: Path) -> None:
    """Check that the file is as long as its header says.

    OpenVINO reads beyond the end of a file that was cut short, and takes the process with it.

    Raises:
        ConfigError: The file is cut short.
    """
    try:
        with path.open("rb") as file:
            missing = _end_of_weights(file) - path.stat().st_size
    except (OSError, struct.error, ValueError) as error:
        raise ConfigError(f"{path} is not a readable GGUF model ({_reason(error)}).") from None
    if missing > 0:
        raise ConfigError(
            f"{path} is cut short by {missing} bytes.", hint="Copy or download it again."
        )


def _end_of_weights(file: BinaryIO) -> int:
    file.seek(8)
    tensors, count = struct.unpack("<QQ", file.read(16))
    alignment = 32
    for _ in range(count):
        name, kind = _string(file), _number(file, "<I")
        value = _value(file, kind)
        if name == "general.alignment":
            alignment = value
    end = 0
    for _ in range(tensors):
        _string(file)
        values = math.prod(_number(file, "<Q") for _ in range(_number(file, "<I")))
        kind, offset = _number(file, "<I"), _number(file, "<Q")
        end = max(end, offset + values * _BYTES_OF_256.get(kind, 0) // 256)
    return -(-file.tell() // alignment) * alignment + end


def _reason(error: Exception) -> str:
    if isinstance(error, struct.error):
        return "it is cut short"
    if isinstance(error, KeyError):
        return f"it has no field {error.args[0]}"
    return str(error)


def _header(fields: dict[str, Any]) -> GgufHeader:
    arch = fields["general.architecture"]
    heads = fields[f"{arch}.attention.head_count"]
    kv_heads = fields.get(f"{arch}.attention.head_count_kv", heads)
    width = fields[f"{arch}.embedding_length"]
    head = fields.get(f"{arch}.attention.key_length", width // heads)
    layers = fields[f"{arch}.block_count"]
    return GgufHeader(arch, fields[f"{arch}.context_length"], 2 * layers * kv_heads * head)


def _model_fields(file: BinaryIO) -> dict[str, Any]:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not start with GGUF")
    version, _tensors, count = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, not 2 or 3")
    fields: dict[str, Any] = {}
    for _ in range(count):
        name = _string(file)
        # The vocabulary is long, and the dimensions usually come before it.
        if name.startswith("tokenizer.") and _has_dimensions(fields):
            break
        fields[name] = _value(file, _number(file, "<I"))
    return fields


def _has_dimensions(fields: dict[str, Any]) -> bool:
    return f"{fields.get('general.architecture')}.attention.head_count" in fields


def _number(file: BinaryIO, layout: str) -> Any:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _string(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > _LONGEST_STRING:
        raise ValueError("a text in it is longer than 16 MB")
    return bytes(file.read(length)).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item, count = _number(file, "<I"), _number(file, "<Q")
        if item in _SCALARS:
            file.seek(count * struct.calcsize(_SCALARS[item]), os.SEEK_CUR)
            return None
        for _ in range(count):
            _value(file, item)
        return None
    if kind not in _SCALARS:
        raise ValueError(f"a field has the unknown type {kind}")
    return _number(file, _SCALARS[kind])


def reencode_q8_0(source: Path, target: Path) -> None:
    """Write `source` to `target` with its Q4_1 tensors as Q8_0.

    OpenVINO reads Q4_1 wrongly (mean negative log-likelihood 3.73 against 3.54 of the float
    reference); on the same weights as Q8_0 it reaches 3.55. Everything else is copied.

    Raises:
        ConfigError: The `gguf` package is missing.
        OSError: `target` cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "The gguf package is not installed.", hint="Run: pip install 'scaleinfer[local]'"
        ) from None
    old, new = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0)
        of = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, value, field.types[0], sub_type=of)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == old:
            data, kind = gguf.quantize(gguf.dequantize(data, old), new), new
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
