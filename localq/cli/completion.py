"""What a shell offers at Tab: models, formats and shapes. Where nothing fits, shells offer files.

typer's `--install-completion` writes the script that calls `localq` at each Tab.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable

import typer

_OF_ARTIFACTS = ("rm", "show", "verify", "export")
"""Verbs that need an artifact; the others can make one."""


def complete_reference(ctx: typer.Context, incomplete: str) -> list[str]:
    """Models; behind a colon, formats."""
    from localq.recipes import RECIPES
    from localq.store.names import made_recipe_names, model_names

    models_dir = ctx.params.get("models_dir")
    model, colon, start = incomplete.rpartition(":")
    if not colon:
        return _matching(incomplete, model_names(models_dir))
    recipes = made_recipe_names(model, models_dir) if ctx.info_name in _OF_ARTIFACTS else list(RECIPES)
    return [f"{model}:{recipe}" for recipe in _matching_recipes(start, recipes)]


def complete_recipe(incomplete: str) -> list[str]:
    """Formats."""
    from localq.recipes import RECIPES

    return _matching_recipes(incomplete, list(RECIPES))


def complete_shape(incomplete: str) -> list[str]:
    """Shapes of public models."""
    from localq.measure.shapes import shape_names

    return _matching(incomplete, shape_names())


def bash_words_joined(run: Callable[[], None]) -> None:
    """Run what completes for bash, which ends a word at each colon: `toy-phi:gg` arrives as three words.

    They are joined for typer; and of its answers only what follows the colon is printed, which is what bash replaces.
    """
    words = os.environ["COMP_WORDS"].split("\n")
    place = int(os.environ["COMP_CWORD"])
    joined = re.sub(r"\n?:(\n|$)", ":", "\n".join(words[: place + 1]))
    os.environ["COMP_WORDS"] = joined
    os.environ["COMP_CWORD"] = str(joined.count("\n"))
    head = joined.rpartition("\n")[2].rpartition(":")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run()
    finally:
        known = head[0] + head[1]
        sys.stdout.write("".join(line.removeprefix(known) for line in printed.getvalue().splitlines(keepends=True)))


def _matching_recipes(start: str, recipes: list[str]) -> list[str]:
    """In full; short, such as `q4_k_m`, where they are typed so."""
    return _matching(start, recipes) or _matching(start, [recipe.partition("-")[2] for recipe in recipes])


def _matching(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
