"""Recipes by name, and llama.cpp's own numbers for its file types."""

from __future__ import annotations

import pytest

from localq.errors import UnknownRecipeError
from localq.recipes import (
    DEFAULT_RECIPES,
    RECIPES,
    GgufRecipe,
    MlxQuantization,
    MlxRecipe,
    looks_like_recipe,
    parse_recipe,
    recipe_names_among,
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_found_by_its_name_in_any_case(name: str) -> None:
    recipe = parse_recipe(name)
    assert recipe.name == name
    assert recipe.name.startswith(f"{recipe.format}-")
    assert parse_recipe(name.upper()) is recipe
    assert looks_like_recipe(name.title())


@pytest.mark.parametrize(
    ("name", "quantization", "high_bits", "dtype"),
    [
        ("mlx-4bit", MlxQuantization(4, 64), None, None),
        ("mlx-8bit-g32", MlxQuantization(8, 32), None, None),
        ("mlx-2bit-g128", MlxQuantization(2, 128), None, None),
        ("mlx-mxfp4", MlxQuantization(4, 32, "mxfp4"), None, None),
        ("mlx-mxfp8", MlxQuantization(8, 32, "mxfp8"), None, None),
        ("mlx-nvfp4", MlxQuantization(4, 16, "nvfp4"), None, None),
        ("mlx-mixed-4-6", MlxQuantization(4, 64), 6, None),
        ("mlx-bf16", None, None, "bfloat16"),
        ("mlx-f16", None, None, "float16"),
        ("mlx-f32", None, None, "float32"),
    ],
)
def test_mlx_recipes_say_what_their_names_say(
    name: str, quantization: MlxQuantization | None, high_bits: int | None, dtype: str | None
) -> None:
    assert parse_recipe(name) == MlxRecipe(name, quantization, high_bits, dtype)


@pytest.mark.parametrize("recipe", [r for r in RECIPES.values() if isinstance(r, GgufRecipe)], ids=lambda r: r.name)
def test_gguf_recipes_have_the_numbers_of_llama_cpp(recipe: GgufRecipe) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    constant = f"MOSTLY_{recipe.file_type}" if recipe.file_type != "F32" else "ALL_F32"
    assert recipe.name == f"gguf-{recipe.file_type.lower()}"
    assert recipe.file_type_number == getattr(llama_cpp, f"LLAMA_FTYPE_{constant}")


@pytest.mark.parametrize(
    "name",
    ["mlx-4bit", "mlx-8bit", "mlx-bf16", "mlx-f32"]
    + [f"gguf-{kind}" for kind in ("q4_k_m", "q4_0", "q8_0", "bf16", "f16", "f32", "iq4_nl")],
)
def test_promised_recipes_exist(name: str) -> None:
    assert name in RECIPES


def test_the_default_recipes_are_one_of_each_format() -> None:
    assert [parse_recipe(name).format for name in DEFAULT_RECIPES] == ["mlx", "gguf"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("q4_k_m", "gguf-q4_k_m"),
        ("Q4_K_M", "gguf-q4_k_m"),
        ("q8_0", "gguf-q8_0"),
        ("IQ4_NL", "gguf-iq4_nl"),
        ("mxfp4_moe", "gguf-mxfp4_moe"),
        ("4bit", "mlx-4bit"),
        ("8bit", "mlx-8bit"),
        ("mlx-4", "mlx-4bit"),
        ("MLX-8", "mlx-8bit"),
        ("8bit-g32", "mlx-8bit-g32"),
        ("mxfp4", "mlx-mxfp4"),
        ("mlx", "mlx-4bit"),
        ("GGUF", "gguf-q4_k_m"),
    ],
)
def test_a_short_name_is_understood_where_it_can_mean_only_one_recipe(name: str, meant: str) -> None:
    assert parse_recipe(name) is RECIPES[meant]


@pytest.mark.parametrize("name", ["bf16", "F16", "f32"])
def test_a_name_that_both_formats_have_is_refused_with_both(name: str) -> None:
    with pytest.raises(UnknownRecipeError, match="MLX and GGUF both have") as caught:
        parse_recipe(name)
    assert caught.value.nearest == [f"mlx-{name.lower()}", f"gguf-{name.lower()}"]
    assert " or ".join(caught.value.nearest) in caught.value.hint


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mlx-4bits", "mlx-4bit"),
        ("4bits", "mlx-4bit"),
        ("q4km", "gguf-q4_k_m"),
        ("Q4-K-M", "gguf-q4_k_m"),
        ("gguf-q4km", "gguf-q4_k_m"),
        ("mlx-4bit-g64", "mlx-4bit-g32"),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest_names(name: str, nearest: str) -> None:
    with pytest.raises(UnknownRecipeError, match="unknown format") as caught:
        parse_recipe(name)
    assert caught.value.name == name
    assert nearest in caught.value.nearest
    assert all(choice in RECIPES for choice in caught.value.nearest)
    assert nearest in caught.value.hint and "localq recipes" in caught.value.hint
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["", "something else", "4", "main", "-"])
def test_a_name_that_is_near_to_none_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UnknownRecipeError, match="unknown format") as caught:
        parse_recipe(name)
    assert caught.value.nearest == []
    assert caught.value.hint == "`localq recipes` lists all formats"


@pytest.mark.parametrize(("text", "meant"), [("mlx-9bit", True), ("GGUF-x", True), ("main", False), ("q4_k_m", False)])
def test_what_was_meant_as_a_recipe_is_not_taken_for_a_path(text: str, meant: bool) -> None:
    assert looks_like_recipe(text) is meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("q4_k_m-calibrated", "gguf-q4_k_m-calibrated"),
        ("GGUF-IQ4_XS-Calibrated", "gguf-iq4_xs-calibrated"),
        ("4bit-calibrated", "mlx-4bit-calibrated"),
        ("mlx-3bit-g32-calibrated", "mlx-3bit-g32-calibrated"),
        ("gguf-4.5bpw", "gguf-4.5bpw"),
        ("gguf-4.50bpw", "gguf-4.5bpw"),
        ("mlx-3bpw", "mlx-3bpw"),
        ("mlx-4.87BPW", "mlx-4.87bpw"),
    ],
)
def test_calibrated_formats_and_budgets_have_names(name: str, meant: str) -> None:
    recipe = parse_recipe(name)
    assert (recipe.name, recipe.calibrated) == (meant, True)
    assert recipe.budget == (float(meant[:-3].partition("-")[2]) if meant.endswith("bpw") else None)
    assert recipe_names_among([meant, "mlx-4bit", "gguf-4.50bpw", "notes"]) == ["mlx-4bit", meant]


@pytest.mark.parametrize(
    "name",
    ["q8_0-calibrated", "mlx-bf16-calibrated", "mlx-mxfp4-calibrated", "gguf-0.5bpw", "mlx-17bpw", "mlx-4.555bpw"],
)
def test_a_format_that_calibration_does_not_change_has_no_calibrated_one(name: str) -> None:
    with pytest.raises(UnknownRecipeError):
        parse_recipe(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gguf-99bpw", ["gguf-16bpw"]),
        ("mlx-0.5bpw", ["mlx-1.5bpw"]),
        ("gguf-4.127bpw", ["gguf-4.13bpw"]),
        ("20bpw", ["mlx-16bpw", "gguf-16bpw"]),
        ("gguf-manybpw", []),
    ],
)
def test_a_budget_that_is_not_possible_is_refused_with_the_limits(name: str, nearest: list[str]) -> None:
    with pytest.raises(UnknownRecipeError, match=r"budgets are 1\.5 to 16 bits per weight") as caught:
        parse_recipe(name)
    assert caught.value.nearest == nearest
    for found in nearest:
        parse_recipe(found)


def test_a_budget_without_mlx_or_gguf_is_ambiguous() -> None:
    with pytest.raises(UnknownRecipeError) as caught:
        parse_recipe("4.5bpw")
    assert caught.value.nearest == ["mlx-4.5bpw", "gguf-4.5bpw"]
