"""Which forms are compared, and with what: the same model unquantized, in one engine and in the other.

Makes the forms that are missing; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localq.backends import has_backend
from localq.context_length import config_limits, gguf_limits
from localq.conversion.convert import ConversionListener
from localq.errors import OptionError
from localq.gguf_file import read_model_header
from localq.json_files import read_config
from localq.measure.forms import Form, check_names, find_forms
from localq.model import ready_form
from localq.reference import parse_reference
from localq.store.manifest import Manifest, read_manifest

_SMALL_PARAMETERS = 1_000_000_000
"""A checkpoint with fewer is compared in float32; a larger one takes as many bits as it was published with."""
_UNQUANTIZED = ("f32", "bf16", "f16")
_PRECISIONS = {"float32": "f32", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class EvalForms:
    """What one evaluation compares."""

    reference: Form
    noise_floor: Form | None
    """The reference's precision in the other engine; None where no form runs in that engine, or none was wanted."""
    forms: tuple[Form, ...]
    warnings: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[Form, ...]:
        """All but the reference, in the order in which they are computed; each once."""
        floor = (self.noise_floor,) if self.noise_floor else ()
        return tuple(dict.fromkeys((*floor, *self.forms)))


def find_eval_forms(
    references: Sequence[str],
    chosen_reference: str | None,
    wants_noise_floor: bool,
    models_dir: Path | None = None,
    listener: ConversionListener | None = None,
) -> EvalForms:
    """The forms that references name, what they are compared with, and where the engines' own difference shows.

    The reference is the form that `chosen_reference` names, else the unquantized GGUF form of the same checkpoint:
    float32 below a billion parameters, else the checkpoint's precision. Raises OptionError where that is not known or
    not one, else as `find_forms`.
    """
    forms = find_forms(references, models_dir, listener)
    if chosen_reference is not None:
        _require_form(chosen_reference, models_dir, listener)
        (reference,) = find_forms([chosen_reference], models_dir, listener)
    else:
        origin = _common_origin(forms)
        recipe = _reference_recipe(origin, forms[0])
        (reference,) = find_forms([f"{_checkpoint(origin)}:{recipe}"], models_dir, listener)
        _require_same_state(forms, reference)
    check_names({reference, *forms})
    if not wants_noise_floor or all(form.format == reference.format for form in forms):
        return EvalForms(reference, None, tuple(forms))
    floor = _floor_reference(reference)
    if floor is None:
        warning = (
            f"{reference.name} has no counterpart in the other engine that localq could make: what of the figures is "
            "the engines' own difference is not known"
        )
        return EvalForms(reference, None, tuple(forms), (warning,))
    (noise_floor,) = find_forms([floor], models_dir, listener)
    return EvalForms(reference, noise_floor, tuple(forms))


def _require_form(text: str, models_dir: Path | None, listener: ConversionListener | None) -> None:
    """Refuse a model that stands for several forms, or for another one on another platform."""
    reference = parse_reference(text)
    if reference.recipe is None and not ready_form(reference, models_dir, listener.on_download if listener else None):
        raise OptionError(f"--reference {text} names no form", f"for example: --reference {text}:gguf-f32")


def most_context_tokens(forms: Sequence[Form]) -> int | None:
    """The longest context that all of the forms have; None where none of them says it."""
    return min(filter(None, map(_context_tokens, forms)), default=None)


def _context_tokens(form: Form) -> int | None:
    if form.path.is_file():
        return gguf_limits(read_model_header(form.path)).most
    return config_limits(read_config(form.path)).most


def _common_origin(forms: Sequence[Form]) -> Manifest:
    """A manifest that tells of the checkpoint that all forms were made from."""
    manifests: dict[tuple[str, str], Manifest] = {}
    for form in forms:
        manifest = _manifest(form)
        if manifest is None:
            raise OptionError(
                f"{form.name} was not made by localq, so its original is not known",
                "name what it is to be compared with: --reference REF",
            )
        manifests[manifest.model, manifest.source] = manifest
    if len(manifests) > 1:
        models = ", ".join(sorted({manifest.model for manifest in manifests.values()}))
        raise OptionError(
            f"these are forms of {len(manifests)} models: {models}",
            "evaluate one model at a time, or name what all are to be compared with: --reference REF",
        )
    (origin,) = manifests.values()
    return origin


def _manifest(form: Form) -> Manifest | None:
    return None if form.path.is_file() else read_manifest(form.path)


def _checkpoint(origin: Manifest) -> str:
    """The reference of what a form was made from: its folder, where it is still there."""
    return origin.source if Path(origin.source).is_absolute() and Path(origin.source).is_dir() else origin.model


def _reference_recipe(origin: Manifest, form: Form) -> str:
    if origin.parameters < _SMALL_PARAMETERS:
        return "gguf-f32"
    config = read_config(form.path)
    return f"gguf-{_PRECISIONS.get(str(config.get('torch_dtype') or config.get('dtype')), 'bf16')}"


def _require_same_state(forms: Sequence[Form], reference: Form) -> None:
    made_from = _manifest(reference)
    for form in forms:
        manifest = _manifest(form)
        if manifest and made_from and manifest.revision != made_from.revision:
            raise OptionError(
                f"{form.name} and {reference.name} were made from different states of {manifest.source}",
                f"make it again: localq convert {manifest.source} --to {form.recipe} --force",
            )


def _floor_reference(reference: Form) -> str | None:
    """The unquantized form that the other engine runs; None where localq can't make or run one."""
    origin = _manifest(reference)
    other = {"gguf": "mlx", "mlx": "gguf"}[reference.format]
    precision = reference.recipe.partition("-")[2]
    if origin is None or precision not in _UNQUANTIZED or not has_backend(other):
        return None
    return f"{_checkpoint(origin)}:{other}-{precision}"
