"""Recipes: the formats that a checkpoint can be converted to, by name.

`mlx-4bit`, `mlx-8bit-g32`, `mlx-bf16`; `gguf-q4_k_m`, `gguf-q8_0`, `gguf-f32`. With `-calibrated`, as in
`gguf-q4_k_m-calibrated`, the model's calibration says which weights matter most; `gguf-4.5bpw` and `mlx-4.5bpw` are
budgets in bits per weight, where the calibration also says how many bits each tensor gets. llama.cpp's smallest types,
such as `gguf-iq2_xxs`, need calibration too. Only names and numbers; the files are made in `localq.conversion`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from localq.errors import UnknownRecipeError

MLX_DEFAULT_GROUP_SIZE = 64
"""Weights per scale and bias in MLX's affine quantization, as in mlx_lm."""

_MLX_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_MLX_BITS = (2, 3, 4, 5, 6, 8)
_MLX_GROUP_SIZES = (32, 64, 128)
_MLX_MIXES = ((2, 6), (3, 4), (3, 6), (4, 6))  # the low and high bits that mlx_lm offers

# llama.cpp's file types (`enum llama_ftype` in llama.h).
_GGUF_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ4_XS": 30,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "Q1_0": 40,
    "Q2_0": 41,
}
_NEEDING_A_MATRIX = {
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ1_M": 31,
}
_WITHOUT_A_USE_OF_A_MATRIX = {"F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0"}

CALIBRATED = "-calibrated"
"""Ends the name of a format that is made with the model's calibration."""

_BUDGET = re.compile(r"(mlx|gguf)-([1-9]\d?(?:\.\d{1,2})?)bpw")
_LIKE_A_BUDGET = re.compile(r"(mlx-|gguf-|)(\d{1,9}\.?\d{0,9}|\.\d{1,9})bpw")
_LEAST_BUDGET, _MOST_BUDGET = 1.5, 16.0


@dataclass(frozen=True, slots=True)
class MlxQuantization:
    """How `mx.quantize` packs a tensor."""

    bits: int
    """Per weight, without the group's scale."""
    group_size: int = MLX_DEFAULT_GROUP_SIZE
    """Weights that share a scale."""
    mode: str = "affine"
    """`affine` has a scale and a bias per group; `mxfp4`, `mxfp8` and `nvfp4` have small floats and a scale."""


_MLX_FLOAT_MODES = {
    "mxfp4": MlxQuantization(4, 32, "mxfp4"),
    "mxfp8": MlxQuantization(8, 32, "mxfp8"),
    "nvfp4": MlxQuantization(4, 16, "nvfp4"),
}


@dataclass(frozen=True, slots=True)
class MlxRecipe:
    """A folder that stock mlx_lm loads: quantized, or cast to a floating `dtype`."""

    name: str
    quantization: MlxQuantization | None = None
    """None where nothing is quantized."""
    high_bits: int | None = None
    """In a mix: of the tensors that quality depends on most."""
    dtype: str | None = None
    """`bfloat16`, `float16` or `float32`; None keeps the checkpoint's own where nothing is quantized."""
    format: str = "mlx"
    calibrated: bool = False
    """Whether scales and biases are searched, with the model's calibration."""
    budget: float | None = None
    """Bits per weight at most, where each tensor gets bits of its own."""


@dataclass(frozen=True, slots=True)
class GgufRecipe:
    """A single `.gguf` file that stock llama.cpp loads."""

    name: str
    file_type: str
    """llama.cpp's name, such as `Q4_K_M`."""
    file_type_number: int
    """The value of `enum llama_ftype`."""
    format: str = "gguf"
    calibrated: bool = False
    """Whether it is quantized with an importance matrix, that of the model's calibration if no other was given."""
    budget: float | None = None
    """Bits per weight at most, where each tensor gets a type of its own."""

    @property
    def needs_importance(self) -> bool:
        """Whether llama.cpp makes this file type only with an importance matrix."""
        return self.file_type in _NEEDING_A_MATRIX


Recipe = MlxRecipe | GgufRecipe


def _all_recipes() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for bits in _MLX_BITS:
        for group_size in _MLX_GROUP_SIZES:
            suffix = "" if group_size == MLX_DEFAULT_GROUP_SIZE else f"-g{group_size}"
            name = f"mlx-{bits}bit{suffix}"
            recipes[name] = MlxRecipe(name, MlxQuantization(bits, group_size))
    for mode, quantization in _MLX_FLOAT_MODES.items():
        recipes[f"mlx-{mode}"] = MlxRecipe(f"mlx-{mode}", quantization)
    for low, high in _MLX_MIXES:
        name = f"mlx-mixed-{low}-{high}"
        recipes[name] = MlxRecipe(name, MlxQuantization(low), high_bits=high)
    for short, dtype in _MLX_DTYPES.items():
        recipes[f"mlx-{short}"] = MlxRecipe(f"mlx-{short}", dtype=dtype)
    for file_type, number in _GGUF_FILE_TYPES.items():
        name = f"gguf-{file_type.lower()}"
        recipes[name] = GgufRecipe(name, file_type, number)
    for file_type, number in _NEEDING_A_MATRIX.items():
        name = f"gguf-{file_type.lower()}"
        recipes[name] = GgufRecipe(name, file_type, number, calibrated=True)
    return recipes


RECIPES: dict[str, Recipe] = _all_recipes()
"""Every recipe by name, except those that end in `-calibrated` and the budgets."""

DEFAULT_RECIPES = ("mlx-4bit", "gguf-q4_k_m")
"""What `localq convert` makes where no format is given."""


def parse_recipe(name: str) -> Recipe:
    """The recipe of that name, in any letter case, or of a short name that can mean only one.

    `q4_k_m`, `4bit` and `mlx-4` are such names; `mlx` and `gguf` mean the default recipes. Raises UnknownRecipeError,
    which carries the nearest names: both for `bf16`, which MLX and GGUF have.
    """
    wanted = name.lower()
    stem, suffix = wanted.removesuffix(CALIBRATED), CALIBRATED if wanted.endswith(CALIBRATED) else ""
    spellings = [spelling + suffix for spelling in (stem, f"mlx-{stem}", f"gguf-{stem}", f"{stem}bit")]
    meant = [recipe for spelling in spellings if (recipe := exact_recipe(spelling))]
    meant += [RECIPES[default] for default in DEFAULT_RECIPES if RECIPES[default].format == wanted]
    if len(meant) > 1:
        raise UnknownRecipeError(name, [recipe.name for recipe in meant], f"MLX and GGUF both have a format {name!r}")
    if not meant:
        raise UnknownRecipeError(name, _nearest(wanted), f"unknown format {name!r}{_why(wanted)}")
    return meant[0]


def exact_recipe(name: str) -> Recipe | None:
    """The recipe of exactly that name, in lower case."""
    if found := _BUDGET.fullmatch(name):
        return _budgeted(found[1], float(found[2]))
    if not name.endswith(CALIBRATED):
        return RECIPES.get(name)
    plain = RECIPES.get(name.removesuffix(CALIBRATED))
    if plain is None or plain.calibrated:
        return None
    if isinstance(plain, GgufRecipe) and plain.file_type not in _WITHOUT_A_USE_OF_A_MATRIX:
        return replace(plain, name=name, calibrated=True)
    if isinstance(plain, MlxRecipe) and plain.quantization and plain.quantization.mode == "affine":
        return replace(plain, name=name, calibrated=True)
    return None


def _budgeted(form: str, bits: float) -> Recipe | None:
    if not _LEAST_BUDGET <= bits <= _MOST_BUDGET:
        return None
    name = f"{form}-{bits:g}bpw"
    if form == "gguf":
        return GgufRecipe(name, "Q4_K_M", _GGUF_FILE_TYPES["Q4_K_M"], calibrated=True, budget=bits)
    return MlxRecipe(name, MlxQuantization(4), calibrated=True, budget=bits)


def recipe_names_among(names: Iterable[str]) -> list[str]:
    """Those that are exactly a recipe's name, in the order of `RECIPES`, calibrated ones and budgets last."""
    order = {name: place for place, name in enumerate(RECIPES)}
    found = [name for name in names if (recipe := exact_recipe(name)) and recipe.name == name]
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


def looks_like_recipe(text: str) -> bool:
    """Whether `text` was meant as a recipe, also a misspelt one, and not as part of a path."""
    return text.lower().startswith(("mlx-", "gguf-")) or text.lower() in RECIPES


def _why(name: str) -> str:
    if name.endswith("bpw"):
        return f": budgets are {_LEAST_BUDGET:g} to {_MOST_BUDGET:g} bits per weight, in steps of 0.01"
    return ": it is empty" if not name else ": give one format at a time" if "," in name else ""


def _nearest(name: str) -> list[str]:
    if name.endswith("bpw"):
        budget = _LIKE_A_BUDGET.fullmatch(name)
        if budget is None:
            return []
        bits = round(min(max(float(budget[2]), _LEAST_BUDGET), _MOST_BUDGET), 2)
        return [f"{form}{bits:g}bpw" for form in ([budget[1]] if budget[1] else ["mlx-", "gguf-"])]
    bare = {recipe.partition("-")[2] for recipe in RECIPES}  # "q4km" and "4bits" lack the prefix
    close = difflib.get_close_matches(name.removesuffix(CALIBRATED), [*RECIPES, *bare], 3, 0.65)
    found = [recipe for text in close for recipe in RECIPES if text in (recipe, recipe.partition("-")[2])]
    return list(dict.fromkeys(found))[:3]
