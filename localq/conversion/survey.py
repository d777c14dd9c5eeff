"""Before a conversion: which forms are there already, and the exact plan of those that are not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from localq.backends import default_recipe_names, require_backend
from localq.checkpoint.folder import Checkpoint
from localq.conversion.gguf_header import GgufMetadata, gguf_metadata
from localq.conversion.plan_gguf import GgufPlan, plan_gguf
from localq.conversion.plan_mlx import MlxPlan, plan_mlx
from localq.conversion.pre_tokenizers import require_known_name
from localq.conversion.tokenizer_caveats import gguf_tokenizer_caveats
from localq.errors import ModelNotFoundError, ModelReferenceError, OptionError
from localq.recipes import GgufRecipe, MlxRecipe, Recipe, parse_recipe
from localq.reference import ModelReference, is_local, parse_reference
from localq.store.manifest import Artifact, Fallback
from localq.store.store import Store, shown_name

Plan = GgufPlan | MlxPlan
Source = str | os.PathLike[str] | ModelReference
Recipes = str | Sequence[str | Recipe] | None


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be converted, to what, and how."""

    source: Source
    recipes: Recipes
    """None for the default ones that this platform and the model's family have."""
    force: bool = False
    """Whether to make anew what is there."""
    pre_tokenizer: str | None = None
    """llama.cpp's name of a rule to split text by, in place of the tokenizer's own (GGUF)."""

    def parse(self) -> tuple[ModelReference, list[Recipe]]:
        """The checkpoint, and the forms, each once. Raises for what can't be read, or not be had on this platform."""
        reference = self.source if isinstance(self.source, ModelReference) else parse_reference(self.source)
        if reference.recipe is not None:
            raise ModelReferenceError(
                f"{reference} names a form; convert takes the checkpoint and --to {reference.recipe.name}"
            )
        names = default_recipe_names() if self.recipes is None else self.recipes
        listed = [names] if isinstance(names, str) else names
        parsed = [parse_recipe(recipe) if isinstance(recipe, str) else recipe for recipe in listed]
        for recipe in parsed:
            require_backend(recipe.format)
        if self.pre_tokenizer is not None:
            require_known_name(self.pre_tokenizer)
            if not any(isinstance(recipe, GgufRecipe) for recipe in parsed):
                raise OptionError(f"a pre-tokenizer ({self.pre_tokenizer}) is for gguf forms alone", "leave it out")
        return reference, list({recipe.name: recipe for recipe in parsed}.values())

    def fits(self, artifact: Artifact) -> bool:
        """Whether an artifact was made as it is wanted now; who names no pre-tokenizer takes any."""
        is_other = self.pre_tokenizer not in (None, artifact.manifest.pre_tokenizer)
        return isinstance(artifact.recipe, MlxRecipe) or not is_other


@dataclass(frozen=True, slots=True)
class PlannedForm:
    """What a conversion would write, or finds (`--dry-run`)."""

    model: str
    recipe: Recipe
    path: Path
    """Where it lies, or would: the MLX folder or the `.gguf` file."""
    weight_bytes: int
    """Tensor data alone."""
    parameters: int
    reused: bool
    """Whether it is there already."""
    fallbacks: tuple[Fallback, ...] = ()
    """Tensors that get another type than the recipe asks for."""

    @property
    def bits_per_weight(self) -> float:
        """8 x weight bytes / parameters."""
        return 8 * self.weight_bytes / self.parameters


@dataclass(frozen=True, slots=True)
class Survey:
    """Which of the forms that were asked for are there, and what the others are to be made from."""

    request: Request
    store: Store
    reference: ModelReference
    wanted: list[Recipe]
    there: dict[str, Artifact]
    """By the recipe's name, like `plans`: each recipe is in one of the two."""
    opened: Checkpoint | None = None
    """None where all is there."""
    outdated: tuple[Artifact, ...] = ()
    plans: dict[str, Plan] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Checkpoint:
        assert self.opened is not None, "whoever made a plan has opened it"
        return self.opened

    def is_current(self, artifact: Artifact) -> bool:
        """Whether it is what this conversion would make."""
        return artifact.manifest.revision == self.checkpoint.revision and self.request.fits(artifact)

    def caveats(self) -> tuple[str, ...]:
        """Where the forms that are to be made will differ from the model's reference."""
        caveats = self.checkpoint.family.caveats(self.checkpoint.config)
        return (*caveats, *gguf_tokenizer_caveats(self.checkpoint.folder)) if self.makes_gguf else caveats

    @property
    def makes_gguf(self) -> bool:
        """Whether a GGUF form is to be made."""
        return any(isinstance(plan, GgufPlan) for plan in self.plans.values())

    def gguf_metadata(self) -> GgufMetadata:
        """What every GGUF form begins with. Raises CheckpointError for a tokenizer that can't be had as GGUF."""
        return gguf_metadata(self.checkpoint, with_vocabulary=True, pre_tokenizer=self.request.pre_tokenizer)

    def planned(self, recipe: Recipe) -> PlannedForm:
        """What will become of one recipe."""
        if recipe.name in self.there:
            artifact = self.there[recipe.name]
            manifest = artifact.manifest
            sizes = manifest.weight_bytes, manifest.parameters
            return PlannedForm(manifest.model, recipe, artifact.path, *sizes, True, manifest.fallbacks)
        folder = self.store.place(self.reference, recipe)
        plan = self.plans[recipe.name]
        sizes = plan.weight_bytes, self.checkpoint.parameters
        path = folder / main_file(self.checkpoint, recipe)
        return PlannedForm(shown_name(folder), recipe, path, *sizes, False, plan.fallbacks)


def survey(request: Request, store: Store, open_checkpoint: Callable[[ModelReference], Checkpoint]) -> Survey:
    """Look for every form, and plan those that are missing or made from an older checkpoint.

    Raises errors of the tree in `localq.errors` for what can't be converted, before any work.
    """
    reference, wanted = request.parse()
    forms = [artifact for recipe in wanted if (artifact := store.find(reference, recipe))]
    found = {} if request.force else {form.recipe.name: form for form in forms if request.fits(form)}
    if reference.kind == "repo" and len(found) == len(wanted):
        # A repository's artifacts stay valid as they are: no need of its checkpoint, which may be gone.
        return Survey(request, store, reference, wanted, found)
    reference = _with_its_folder(reference, store)
    checkpoint = open_checkpoint(reference)
    if request.recipes is None:
        wanted = [recipe for recipe in wanted if recipe.format in checkpoint.family.formats] or wanted
    there = {name: form for name, form in found.items() if form.manifest.revision == checkpoint.revision}
    outdated = tuple(form for name, form in found.items() if name not in there)
    plans = {recipe.name: make_plan(checkpoint, recipe) for recipe in wanted if recipe.name not in there}
    return Survey(request, store, reference, wanted, there, checkpoint, outdated, plans)


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Every tensor of a form. Raises ConversionError where the recipe does not fit the checkpoint."""
    if isinstance(recipe, MlxRecipe):
        return plan_mlx(checkpoint, recipe)
    return plan_gguf(checkpoint, recipe)


def main_file(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """The `.gguf` file's name; empty for an MLX folder."""
    if isinstance(recipe, MlxRecipe):
        return ""
    return f"{checkpoint.name.rpartition('/')[2]}-{recipe.file_type}.gguf"


def _with_its_folder(reference: ModelReference, store: Store) -> ModelReference:
    """The checkpoint folder behind a name such as `local/model`; any other reference as it is."""
    forms = store.forms(reference) if is_local(reference.name) else []
    if reference.kind != "repo" or not forms:
        return reference
    folder = Path(forms[0].manifest.source)
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{folder} is gone: the checkpoint folder that {reference} was made from",
            "give the path that it has now; the forms that were made of it are there still",
        )
    return parse_reference(folder)
