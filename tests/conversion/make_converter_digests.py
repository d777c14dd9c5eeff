"""Write `converter_digests.json`: what llama.cpp's own converter makes of the checkpoints of the tests.

    python -m tests.conversion.make_converter_digests LLAMA_CPP_SOURCE

Run by hand, with torch, transformers, sentencepiece and the `gguf` package of the llama.cpp source folder on
the path. The converter is asked for each checkpoint's own precision. Vocabularies are compared for the toys
only: their tokenizers are files, those of the random checkpoints are trained again by every version of
`tokenizers`. The converter knows pre-tokenizers by checksums of public tokenizers, so it gets those of the toys.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.tiny_checkpoints import CONFIGS, write_checkpoint

FILE = Path(__file__).with_name("converter_digests.json")
DTYPES = {"llama-3": "F16", "phi-4": "F32"}
"""Checkpoints in another precision than bfloat16."""

_TOYS = ("toy-llama", "toy-phi")
_IGNORED_METADATA = "GGUF."


def digest(data: bytes) -> str:
    """Enough of a SHA-256 to tell tensors apart."""
    return hashlib.sha256(data).hexdigest()[:16]


def describe(file: Path) -> dict[str, Any]:
    """Tensors (type, shape, digest) and metadata of a GGUF file, in its order; long lists as digests."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    tensors = {
        tensor.name: [tensor.tensor_type.name, [int(n) for n in tensor.shape], digest(tensor.data.tobytes())]
        for tensor in reader.tensors
    }
    metadata = {}
    for key, field in reader.fields.items():
        if not key.startswith(_IGNORED_METADATA):
            value = field.contents()
            metadata[key] = digest(json.dumps(value).encode()) if isinstance(value, list) else value
    return {"tensors": tensors, "metadata": metadata}


def _convert(folder: Path, target: Path, with_vocabulary: bool) -> None:
    import conversion
    import gguf
    import torch
    from conversion.base import ModelBase, TextModel

    config = ModelBase.load_hparams(folder, False)
    model_class = conversion.get_model_class(config["architectures"][0], mmproj=False)
    file_type = {
        "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
        "float16": gguf.LlamaFileType.MOSTLY_F16,
        "float32": gguf.LlamaFileType.ALL_F32,
    }[json.loads((folder / "config.json").read_text())["torch_dtype"]]
    with ExitStack() as patches:
        patches.enter_context(patch.object(TextModel, "get_vocab_base_pre", lambda self, tokenizer: "llama-bpe"))
        if not with_vocabulary:
            patches.enter_context(patch.object(model_class, "set_vocab", lambda self: None))
        patches.enter_context(torch.inference_mode())
        model_class(folder, file_type, target).write()


def _checkpoints(scratch: Path) -> Iterator[tuple[str, Path]]:
    for name in CONFIGS:
        yield name, write_checkpoint(scratch / name, name, dtype=DTYPES.get(name, "BF16"))
    for name in _TOYS:
        yield name, Path(__file__).parents[2] / "localq" / "demo" / name


def main() -> None:
    """Convert every checkpoint and write the file."""
    sys.path.append(sys.argv[1])  # behind: it has a folder `tests` as well
    digests = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in _checkpoints(Path(scratch)):
            target = Path(scratch) / f"{name}.gguf"
            _convert(folder, target, with_vocabulary=name in _TOYS)
            digests[name] = describe(target)
            if name not in _TOYS:  # phi2's class writes one key of the vocabulary among the hyperparameters
                metadata = digests[name]["metadata"]
                digests[name]["metadata"] = {k: v for k, v in metadata.items() if not k.startswith("tokenizer.")}
    FILE.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
