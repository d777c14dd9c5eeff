"""Before a conversion: which artifacts exist already, and the exact plan of those that are missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from localq.backends import default_recipe_names, has_backend, require_backend
from localq.calibration.calibration import Calibration, find_calibration, require_calibration
from localq.checkpoint.folder import Checkpoint
from localq.conversion.budgets import budgeted, predicted_damage
from localq.conversion.importance import Importance, of_calibration, read_given
from localq.conversion.plan_gguf import GgufMetadata, GgufPlan, gguf_metadata, plan_gguf
from localq.conversion.plan_mlx import MlxPlan, plan_mlx, stored_bytes
from localq.conversion.pre_tokenizers import require_known_name
from localq.conversion.tokenizer_caveats import gguf_tokenizer_caveats
from localq.conversion.vocabulary import TokenizerFolder
from localq.errors import CalibrationError, ModelNotFoundError, ModelReferenceError, OptionError
from localq.families.config import ModelConfig
from localq.hardware import mlx_runs_on_gpu
from localq.memory import DEFAULTS, KvShape, MemoryUse, gguf_memory, mlx_memory
from localq.options import LoadOptions
from localq.recipes import CALIBRATED, GgufRecipe, MlxRecipe, Recipe, parse_recipe
from localq.reference import ModelReference, is_local, parse_reference
from localq.store.manifest import Artifact, Fallback
from localq.store.store import Store, shown_name
from localq.text.chat_template import load_chat_template, missing_chat_template

Plan = GgufPlan | MlxPlan
Source = str | os.PathLike[str] | ModelReference
Recipes = str | Sequence[str | Recipe] | None
OpenCheckpoint = Callable[[ModelReference], Checkpoint]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be converted, to which formats, and how."""

    source: Source
    """A model reference; a repository is pulled when it is not in the Hugging Face cache."""
    recipes: Recipes = None
    """None for the default ones that this platform and the model's family have."""
    models_dir: Path | str | None = None
    """The models folder; see `models_folder`."""
    force: bool = False
    """Whether to make artifacts again that exist already."""
    pre_tokenizer: str | None = None
    """llama.cpp's name of a rule to split text by, in place of the tokenizer's own (GGUF)."""
    imatrix: Path | str | None = None
    """The file of an importance matrix for the calibrated formats, in place of the model's calibration."""
    needs_chat_template: bool = False
    """Whether to refuse a checkpoint without a chat template, instead of converting it."""

    def parse(self) -> tuple[ModelReference, list[Recipe]]:
        """The checkpoint, and the recipes, each once. Raises for what is not valid, or not possible here."""
        reference = self.source if isinstance(self.source, ModelReference) else parse_reference(self.source)
        if reference.recipe is not None:
            raise ModelReferenceError(
                f"{reference} names a format; convert takes the checkpoint and --to {reference.recipe.name}"
            )
        names = default_recipe_names() if self.recipes is None else self.recipes
        listed = [names] if isinstance(names, str) else names
        parsed = [parse_recipe(recipe) if isinstance(recipe, str) else recipe for recipe in listed]
        for recipe in parsed:
            require_backend(recipe.format)
        if self.pre_tokenizer is not None:
            require_known_name(self.pre_tokenizer)
            if not any(isinstance(recipe, GgufRecipe) for recipe in parsed):
                raise OptionError(f"a pre-tokenizer ({self.pre_tokenizer}) is only for GGUF", "leave it out")
        if self.imatrix is not None:
            _require_use_of_a_matrix(parsed)
        return reference, list({recipe.name: recipe for recipe in parsed}.values())

    def given_importance(self) -> Importance | None:
        """The importance matrix of the file. Raises CalibrationError where it can't be read."""
        return None if self.imatrix is None else read_given(Path(self.imatrix).expanduser())

    def fits(self, artifact: Artifact, given: Importance | None) -> bool:
        """Whether an artifact was made as this request asks; what it does not name fits whatever it was."""
        manifest = artifact.manifest
        if given is not None and artifact.recipe.calibrated:
            made_with = manifest.importance and manifest.importance.sha256
            if made_with != given.record.sha256:
                return False
        is_other = self.pre_tokenizer not in (None, manifest.pre_tokenizer)
        return isinstance(artifact.recipe, MlxRecipe) or not is_other


def _require_use_of_a_matrix(recipes: Sequence[Recipe]) -> None:
    for recipe in recipes:
        if recipe.budget is not None:
            raise OptionError(
                f"{recipe.name} takes its importance matrix from the model's calibration, not from a file",
                "leave out --imatrix",
            )
    if not any(recipe.calibrated for recipe in recipes):
        names = ", ".join(recipe.name for recipe in recipes)
        raise OptionError(
            f"an importance matrix is only for calibrated formats, and not for {names}",
            "leave out --imatrix, or choose a format such as gguf-q4_k_m-calibrated or gguf-iq3_xxs",
        )


@dataclass(frozen=True, slots=True)
class PlannedForm:
    """What a conversion writes, or finds."""

    model: str
    recipe: Recipe
    path: Path
    """Where it is, or would be: the MLX folder or the `.gguf` file."""
    weight_bytes: int
    """Tensor data alone."""
    parameters: int
    reused: bool
    """Whether it exists already."""
    fallbacks: tuple[Fallback, ...] = ()
    """Tensors that get another type than the recipe asks for."""
    predicted_kl_divergence: float | None = None
    """Mean, in nats, from the model's calibration; None where there is none, or a type was not measured."""

    @property
    def bits_per_weight(self) -> float:
        """8 x weight bytes / parameters."""
        return 8 * self.weight_bytes / self.parameters

    @property
    def name(self) -> str:
        """As `Artifact.name`."""
        return f"{self.model}:{self.recipe.name}"

    @classmethod
    def of(cls, artifact: Artifact, reused: bool) -> PlannedForm:
        """The same of an artifact that exists."""
        manifest = artifact.manifest
        sizes = manifest.weight_bytes, manifest.parameters
        damage = manifest.predicted_kl_divergence
        return cls(manifest.model, artifact.recipe, artifact.path, *sizes, reused, manifest.fallbacks, damage)


@dataclass(frozen=True)
class ConversionPlan:
    """Which of the wanted artifacts exist, and what the others are to be made from."""

    request: Request
    store: Store
    reference: ModelReference
    wanted: list[Recipe]
    there: dict[str, Artifact]
    """By the recipe's name, like `plans`: each recipe is in one of the two."""
    opened: Checkpoint | None = None
    """None where no checkpoint is needed, because all artifacts exist."""
    outdated: tuple[Artifact, ...] = ()
    """Made from an earlier state of the checkpoint, or with another calibration; they are in `plans` as well."""
    plans: dict[str, Plan] = field(default_factory=dict)
    calibration: Calibration | None = None
    """Of this revision of the checkpoint, where there is one."""
    importance: Importance | None = None
    """What calibrated formats are made with."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The open checkpoint, which every plan is made from."""
        assert self.opened is not None, "plan_conversion opens it where something is missing"
        return self.opened

    @cached_property
    def tokenizer(self) -> TokenizerFolder:
        """The checkpoint's tokenizer."""
        return TokenizerFolder(self.checkpoint.folder)

    def is_current(self, artifact: Artifact) -> bool:
        """Whether it is what this conversion would make."""
        return artifact.manifest.revision == self.checkpoint.revision and self.request.fits(artifact, self.importance)

    def caveats(self) -> tuple[str, ...]:
        """Where the planned artifacts will differ from the model's reference, in sentences."""
        caveats = self.checkpoint.family.caveats(self.checkpoint.config)
        return (*caveats, *gguf_tokenizer_caveats(self.tokenizer)) if self.makes_gguf else caveats

    @property
    def makes_gguf(self) -> bool:
        """Whether a GGUF file is to be made."""
        return any(isinstance(plan, GgufPlan) for plan in self.plans.values())

    def gguf_metadata(self) -> GgufMetadata:
        """The metadata of every planned GGUF file. Raises CheckpointError where GGUF can't hold the tokenizer."""
        return gguf_metadata(self.checkpoint, self.tokenizer, self.request.pre_tokenizer)

    def planned(self, recipe: Recipe) -> PlannedForm:
        """What will become of one recipe."""
        if recipe.name in self.there:
            return PlannedForm.of(self.there[recipe.name], reused=True)
        folder = self.store.place(self.reference, recipe)
        plan = self.plans[recipe.name]
        sizes = plan.weight_bytes, self.checkpoint.parameters
        path = folder / main_file(self.checkpoint, recipe)
        damage = plan.predicted_kl_divergence
        return PlannedForm(shown_name(folder), recipe, path, *sizes, False, plan.fallbacks, damage)


def plan_conversion(request: Request, open_checkpoint: OpenCheckpoint) -> ConversionPlan:
    """Look for every artifact, and plan those that are missing or made from an earlier state of the checkpoint.

    Raises errors of the tree in `localq.errors` for what can't be converted, before any work.
    """
    store = Store(request.models_dir)
    reference, wanted = request.parse()
    given = request.given_importance()
    artifacts = [artifact for recipe in wanted if (artifact := store.find(reference, recipe))]
    found = {} if request.force else {made.recipe.name: made for made in artifacts if request.fits(made, given)}
    if reference.kind == "repo" and len(found) == len(wanted):
        # A repository's artifacts stay valid: its checkpoint is not needed, and may be deleted.
        return ConversionPlan(request, store, reference, wanted, found)
    reference = with_its_folder(reference, store)
    checkpoint = open_checkpoint(reference)
    if request.recipes is None:
        wanted = [recipe for recipe in wanted if recipe.format in checkpoint.family.formats] or wanted
    calibration = find_calibration(store, reference, checkpoint.revision)
    there = {
        name: made
        for name, made in found.items()
        if made.manifest.revision == checkpoint.revision and not _is_of_earlier(calibration, made)
    }
    outdated = tuple(made for name, made in found.items() if name not in there)
    missing = [recipe for recipe in wanted if recipe.name not in there]
    if missing and request.needs_chat_template and load_chat_template(checkpoint.folder) is None:
        raise missing_chat_template(checkpoint.name)
    needing = [recipe for recipe in missing if recipe.calibrated and (given is None or recipe.budget is not None)]
    if needing and calibration is None:
        _raise_uncalibrated(needing, store, reference, checkpoint)
    importance = given or (of_calibration(calibration) if needing and calibration else None)
    plans = {recipe.name: plan_recipe(checkpoint, recipe, calibration, importance) for recipe in missing}
    found_and_planned = ConversionPlan(request, store, reference, wanted, there, checkpoint, outdated, plans)
    return replace(found_and_planned, calibration=calibration, importance=importance)


def _is_of_earlier(calibration: Calibration | None, made: Artifact) -> bool:
    """Whether an artifact was made with another calibration than the model has now."""
    record = made.manifest.importance
    if record is None or not record.is_calibration or calibration is None:
        return False
    return record.sha256 != calibration.importance_sha256


def _raise_uncalibrated(
    recipes: Sequence[Recipe], store: Store, reference: ModelReference, checkpoint: Checkpoint
) -> None:
    try:
        require_calibration(store, reference, checkpoint.revision)
    except CalibrationError as error:
        names = " and ".join(recipe.name for recipe in recipes)
        is_choice = all(recipe.budget is None for recipe in recipes)
        hint = f"{error.hint}; or give an importance matrix with --imatrix" if is_choice else error.hint
        raise CalibrationError(f"{names} can't be made: {error.message}", hint) from error


def plan_recipe(
    checkpoint: Checkpoint,
    recipe: Recipe,
    calibration: Calibration | None = None,
    importance: Importance | None = None,
) -> Plan:
    """Every tensor of one format. A calibrated format without `importance` has the sizes that it has with one.

    Raises ConversionError where the recipe does not fit the checkpoint, CalibrationError for a budget without a
    `calibration` and for an importance matrix that does not fit.
    """
    if recipe.budget is not None and calibration is None:
        raise CalibrationError(
            f"{recipe.name} can't be planned without a calibration",
            f"localq calibrate MODEL, then localq convert MODEL --to {recipe.name} --dry-run",
        )
    used = importance if recipe.calibrated else None
    plan = plan_mlx(checkpoint, recipe) if isinstance(recipe, MlxRecipe) else plan_gguf(checkpoint, recipe, used)
    if recipe.budget is not None and calibration is not None:
        plan = budgeted(plan, checkpoint.parameters, calibration)
    if used is not None:
        used.require_fit(plan)
        plan = replace(plan, importance=used)
    if calibration is not None:
        plan = replace(plan, predicted_kl_divergence=predicted_damage(plan, calibration))
    return plan


def unquantized_plan(checkpoint: Checkpoint, form: str) -> Plan:
    """What types under a budget are chosen for, `mlx` or `gguf`."""
    recipe = parse_recipe(f"{form}-4bpw")
    return plan_mlx(checkpoint, recipe) if isinstance(recipe, MlxRecipe) else plan_gguf(checkpoint, recipe)


def memory_use(plan: Plan, config: ModelConfig, options: LoadOptions = DEFAULTS) -> MemoryUse:
    """What a planned artifact takes in memory on this machine, opened as localq opens it (`localq.engines`)."""
    kv = KvShape(2 * config.layer_count * config.kv_head_count * config.head_dim, config.head_count)
    if isinstance(plan, GgufPlan):
        return gguf_memory(plan.weight_bytes, kv, plan.recipe.file_type == "F32", options)
    stored = (tensor.stored().values() for tensor in plan.tensors)
    tensors = [(dtype, stored_bytes(dtype, shape)) for parts in stored for dtype, shape in parts]
    return mlx_memory(tensors, kv, _mlx_runs_on_gpu(), options)


def _mlx_runs_on_gpu() -> bool:
    return mlx_runs_on_gpu() if has_backend("mlx") else True  # the machine that will run it has one


def main_file(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """The `.gguf` file's name; empty for an MLX folder."""
    if isinstance(recipe, MlxRecipe):
        return ""
    if recipe.budget is not None:
        kind = f"{recipe.budget:g}bpw"
    else:
        kind = recipe.file_type + (CALIBRATED if recipe.name.endswith(CALIBRATED) else "")
    return f"{checkpoint.name.rpartition('/')[2]}-{kind}.gguf"


def with_its_folder(reference: ModelReference, store: Store) -> ModelReference:
    """The checkpoint folder that a name such as `local/model` stands for; any other reference as it is."""
    artifacts = store.forms(reference) if is_local(reference.name) else []
    if reference.kind != "repo" or not artifacts:
        return reference
    folder = Path(artifacts[0].manifest.source)
    if artifacts[0].manifest.imported:
        names = ", ".join(artifact.name for artifact in artifacts)
        raise ModelNotFoundError(f"{reference} was imported, and its checkpoint is not here", f"what is here: {names}")
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{folder}, the checkpoint folder of {reference}, does not exist any more",
            "give its new path; the artifacts that were made from it are still there",
        )
    return parse_reference(folder)
