"""What an artifact of another program is: its files, its format and its size. Changes nothing."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.checkpoint.safetensors_header import is_written_by_mlx, read_header
from localq.checkpoint.tensors import StoredTensor
from localq.errors import CheckpointError, ModelReferenceError, OptionError
from localq.gguf_file import GgufHeader, model_name, part_names, read_model_header
from localq.json_files import read_optional_json
from localq.recipes import RECIPES, GgufRecipe, MlxQuantization, MlxRecipe, Recipe, parse_recipe
from localq.reference import ModelReference
from localq.store.layout import MANIFEST_NAME
from localq.store.leftovers import children
from localq.store.manifest import Manifest, read_artifact

_MLX_SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken")
"""Of the files that mlx_lm reads from a folder."""
_SUFFIXES = (*_MLX_SUFFIXES, ".gguf")

_WORD_BITS = 32
"""`mx.quantize` packs weights into words of uint32."""


@dataclass(frozen=True, slots=True)
class ForeignArtifact:
    """An artifact to be imported."""

    name: str
    """Of the model, as the file or folder says it."""
    source: Path
    recipe: Recipe
    files: tuple[Path, ...]
    main_file: str
    """Empty for an MLX folder."""
    parameters: int
    weight_bytes: int
    manifest: Manifest | None = None
    """Where localq made it."""


def examine(reference: ModelReference, as_recipe: str | None = None) -> ForeignArtifact:
    """Read the headers of a `.gguf` file or a folder; `as_recipe` names the format, where the files don't.

    Raises ModelReferenceError for another kind of reference, OptionError where the format is not stated and none is
    given, CheckpointError or another error of the tree for what can't be an artifact.
    """
    path, recipe = reference.path, parse_recipe(as_recipe) if as_recipe else None
    if path is None or reference.kind == "built-in" or reference.recipe is not None:
        raise ModelReferenceError(
            f"{reference} is not a file or folder on this machine", "give a .gguf file or an MLX folder"
        )
    form = "gguf" if reference.kind == "gguf" or any(path.glob("*.gguf")) else "mlx"
    if recipe is not None and recipe.format != form:
        raise OptionError(f"{path} can't be {recipe.name}", f"leave out --as, or give a {form} format")
    parts = [path.with_name(name) for name in part_names(path.name)] if reference.kind == "gguf" else children(path)
    special = next((file for file in parts if file.suffix in _SUFFIXES and not file.is_file()), None)
    if special is not None:  # opening a pipe would wait for ever
        raise CheckpointError(f"{special} is missing, or not a file", "every file of a model must be a regular file")
    return _examine_file(path, recipe) if reference.kind == "gguf" else _examine_folder(path, recipe)


def _examine_file(path: Path, recipe: Recipe | None) -> ForeignArtifact:
    header = read_model_header(path)
    files = tuple(path.with_name(name) for name in part_names(path.name))
    recipe = recipe or _gguf_recipe(header)
    return ForeignArtifact(model_name(path), path, recipe, files, path.name, header.parameters, header.weight_bytes)


def _gguf_recipe(header: GgufHeader) -> Recipe:
    """As `general.file_type` states it; without that, the one type that all quantized tensors have."""
    number = header.metadata.get("general.file_type")
    for recipe in RECIPES.values():
        if isinstance(recipe, GgufRecipe) and recipe.file_type_number == number and number is not None:
            return recipe
    types = {name.lower() for name in header.types}
    types -= {"f32"} if len(types) > 1 else set()
    names = [f"gguf-{types.pop()}"] if number is None and len(types) == 1 else []
    if not names or names[0] not in RECIPES:
        stated = "states no file type" if number is None else f"has the file type {number}, which localq does not know"
        raise OptionError(f"{header.path} {stated}", "give the nearest format: --as gguf-q4_k_m")
    return RECIPES[names[0]]


def _examine_folder(folder: Path, recipe: Recipe | None) -> ForeignArtifact:
    artifact = read_artifact(folder)
    if artifact is not None:
        own, names = artifact.manifest, [record.name for record in artifact.manifest.files]
        files = tuple(folder / name for name in names)
        sizes = own.parameters, own.weight_bytes
        return ForeignArtifact(own.model, folder, artifact.recipe, files, own.main_file, *sizes, own)
    config = read_optional_json(folder / "config.json")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights or not ("quantization" in config or is_written_by_mlx(weights[0])):
        raise CheckpointError(
            f"{folder} is not an MLX folder",
            f"give a .gguf file itself; a checkpoint is converted: localq convert {shlex.quote(str(folder))}",
        )
    tensors = [tensor for file in weights for tensor in read_header(file)]
    files = tuple(
        file
        for file in sorted(folder.iterdir())
        if file.suffix in _MLX_SUFFIXES and not file.name.startswith(".") and file.name != MANIFEST_NAME
    )
    recipe = recipe or _mlx_recipe(folder, config, tensors)
    weight_bytes = sum(tensor.nbytes for tensor in tensors)
    return ForeignArtifact(folder.name, folder, recipe, files, "", _parameters(config, tensors), weight_bytes)


def _mlx_recipe(folder: Path, config: Mapping[str, Any], tensors: list[StoredTensor]) -> Recipe:
    """The recipe whose quantization `config.json` states, for all tensors or as one of the mixes."""
    stated = config.get("quantization")
    if isinstance(stated, dict):
        main = _quantization(stated, stated)
        others = [_quantization(value, stated) for value in stated.values() if isinstance(value, dict)]
        bits = {main.bits, *(other.bits for other in others)}
        is_mix = len(bits) == 2
        alike = {(q.group_size, q.mode) for q in (main, *others)} == {(main.group_size, main.mode)}
        wanted = MlxQuantization(min(bits), main.group_size, main.mode), max(bits) if is_mix else None
        for recipe in RECIPES.values():
            if isinstance(recipe, MlxRecipe) and (recipe.quantization, recipe.high_bits) == wanted and alike:
                return recipe
    else:
        dtypes = {tensor.dtype.lower() for tensor in tensors}
        if len(dtypes) == 1 and f"mlx-{min(dtypes)}" in RECIPES:
            return RECIPES[f"mlx-{min(dtypes)}"]
    raise OptionError(f"{folder} has no format that localq makes", "give the nearest format: --as mlx-4bit")


def _quantization(value: Mapping[str, Any], defaults: Mapping[str, Any]) -> MlxQuantization:
    both = {"group_size": 64, "bits": 4, "mode": "affine", **defaults, **value}
    return MlxQuantization(both["bits"], both["group_size"], both["mode"])


def _parameters(config: Mapping[str, Any], tensors: list[StoredTensor]) -> int:
    """Numbers in all tensors, where scales and biases of quantized ones don't count."""
    stated = config.get("quantization")
    defaults = stated if isinstance(stated, dict) else {}
    packed = {tensor.name.removesuffix(".scales") for tensor in tensors if tensor.name.endswith(".scales")}
    count = 0
    for tensor in tensors:
        module, _, part = tensor.name.rpartition(".")
        if module in packed and part == "weight":
            own = defaults.get(module)
            bits = _quantization(own if isinstance(own, dict) else {}, defaults).bits
            count += math.prod(tensor.shape) * _WORD_BITS // bits
        elif module not in packed or part not in ("scales", "biases"):
            count += math.prod(tensor.shape)
    return count
