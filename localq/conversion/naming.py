"""Name, size and origin of a model as GGUF metadata (`general.*`), as llama.cpp's converter derives them.

They come from the model's name, its model card (the head of README.md) and generation_config.json. The rules are those
of the `gguf` package (`gguf/metadata.py`), which the converter uses too.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.conversion.gguf_pairs import packed_pair
from localq.conversion.vocabulary import TokenizerFolder, name_for_llama_cpp

if TYPE_CHECKING:
    from gguf import GGUFWriter, Metadata

_LARGEST_CARD_BYTES = 1 << 20


def add_naming(writer: GGUFWriter, checkpoint: Checkpoint, tokenizer: TokenizerFolder) -> None:
    """Write `general.name` and what else is known of the model; a model card that can't be used is left out."""
    before = dict(writer.kv_data[0])
    try:
        _metadata(checkpoint, tokenizer, _model_card(checkpoint.folder)).set_gguf_meta_model(writer)
        for key, pair in writer.kv_data[0].items():
            packed_pair(key, pair)
    except Exception:  # it is someone's free text, and nothing depends on it
        writer.kv_data[0] = before
        _metadata(checkpoint, tokenizer, {}).set_gguf_meta_model(writer)


def _metadata(checkpoint: Checkpoint, tokenizer: TokenizerFolder, card: Mapping[str, Any]) -> Metadata:
    import gguf

    name = Path(checkpoint.name.rpartition("/")[2])
    total, *parts = _parameters(checkpoint)
    raw = checkpoint.config.raw
    hints = {"_name_or_path": raw.get("_name_or_path")} if isinstance(raw.get("_name_or_path"), str) else {}
    metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), dict(card), hints, name, total)
    _add_sampling(metadata, tokenizer.other("generation_config.json"))
    metadata.name = name_for_llama_cpp(metadata.name or name.name, tokenizer)
    if metadata.size_label is None:
        metadata.size_label = gguf.size_label(total, *parts)
    return metadata


def _parameters(checkpoint: Checkpoint) -> tuple[int, int, int, int]:
    """All, those outside experts, those of one expert, the number of experts (`get_total_parameter_count`)."""
    shapes = {layout.gguf_name: layout.shape for layout in checkpoint.layouts}
    extra = checkpoint.family.gguf_extra_tensors(checkpoint.config)
    shapes |= {name: values.shape for name, values in extra.items()}
    stacks = [shape for name, shape in shapes.items() if "_exps." in name]
    experts = stacks[0][0] if stacks else 0
    in_experts = sum(map(math.prod, stacks))
    total = sum(map(math.prod, shapes.values()))
    return total, total - in_experts, in_experts // experts if experts else 0, experts


def _add_sampling(metadata: Metadata, generation_config: Mapping[str, Any]) -> None:
    names = ["sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold", "penalty_last_n"]
    names += ["penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta"]
    stated = {"penalty_repeat": generation_config.get("repetition_penalty"), **generation_config}
    for name in names:
        setattr(metadata, f"sampling_{name}", stated.get(name))
    metadata.sampling_temp = stated.get("temperature")


def _model_card(folder: Path) -> dict[str, Any]:
    import gguf

    file = folder / "README.md"
    if not file.is_file() or file.stat().st_size > _LARGEST_CARD_BYTES:
        return {}
    if _has_aliases(file.read_text(encoding="utf-8")):
        return {}
    logging.getLogger("metadata").setLevel(logging.CRITICAL)  # it tells of entries that it does not know
    card: dict[str, Any] = gguf.Metadata.load_model_card(folder)
    return card


def _has_aliases(text: str) -> bool:
    """Whether the head repeats parts of itself (YAML's &name and *name): a few lines can stand for gigabytes."""
    head = "\n".join(itertools.takewhile(lambda line: line != "---", text.splitlines()[1:]))
    return any(f"*{name}" in head for name in re.findall(r"(?<!\w)&([\w-]+)", head))
