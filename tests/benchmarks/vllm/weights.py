"""The embedded model's GGUF file as the safetensors folder that vLLM reads."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

FOLDER = Path("~/.cache/scaleinfer/vllm-weights").expanduser()


def convert(gguf: Path, folder: Path) -> Path:
    """Write `gguf` as bfloat16 safetensors, with tokenizer and chat template, into `folder`.

    What an earlier call wrote from the same file is kept.
    """
    source = folder / "source.txt"
    stamp = f"{gguf.resolve()} {gguf.stat().st_size} {gguf.stat().st_mtime_ns}"
    if source.is_file() and source.read_text(encoding="utf-8") == stamp:
        return folder
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # type: ignore[import-not-found,unused-ignore]  # in its own environment
    from transformers import (  # type: ignore[import-not-found,unused-ignore]  # likewise
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
    )

    # Without `dequantize` the weights stay in GGUF blocks, which cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source.write_text(stamp, encoding="utf-8")
    return folder


def main() -> None:
    from scaleinfer.backends._local_files import model_path

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=FOLDER)
    gguf = model_path()
    if gguf is None:
        raise SystemExit("no model is installed; run: scaleinfer model install")
    print(convert(gguf, parser.parse_args().to))


if __name__ == "__main__":
    main()
