"""Which artifacts are compared, and with what: the same model unquantized, in one engine and in the other.

Makes the artifacts that are missing; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localq.backends import has_backend
from localq.conversion.convert import ConversionListener
from localq.errors import OptionError
from localq.json_files import read_config
from localq.measure.forms import Form, check_names, context_limits, find_forms
from localq.model import ready_form
from localq.reference import parse_reference
from localq.store.manifest import Manifest, read_manifest

_SMALL_PARAMETERS = 1_000_000_000
"""The baseline of a smaller model is float32, that of a larger one has the precision of the checkpoint."""
_UNQUANTIZED = ("f32", "bf16", "f16")
_PRECISIONS = {"float32": "f32", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class EvalForms:
    """What one evaluation compares."""

    baseline: Form
    noise_floor: Form | None
    """The baseline's precision in the other engine; None if no artifact runs in that engine, or if not wanted."""
    forms: tuple[Form, ...]
    warnings: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[Form, ...]:
        """All except the baseline, in the order in which they are computed; each once."""
        floor = (self.noise_floor,) if self.noise_floor else ()
        return tuple(dict.fromkeys((*floor, *self.forms)))

    @property
    def most_context_tokens(self) -> int | None:
        """The longest context that all have; None if that is not known of any."""
        limits = (context_limits(form).most for form in (self.baseline, *self.compared))
        return min(filter(None, limits), default=None)


def find_eval_forms(
    references: Sequence[str],
    baseline: str | None,
    wants_noise_floor: bool,
    models_dir: Path | None = None,
    listener: ConversionListener | None = None,
) -> EvalForms:
    """The artifacts that references name, their baseline, and the unquantized one for the other engine.

    The baseline is what `baseline` names, else the unquantized GGUF artifact of the same checkpoint: float32 below a
    billion parameters, else the checkpoint's precision. Raises OptionError if it can't be known or is not one artifact,
    else as `find_forms`.
    """

    def find(reference: str) -> Form:
        (form,) = find_forms([reference], models_dir, listener)
        return form

    forms = find_forms(references, models_dir, listener)
    if baseline is not None:
        named = parse_reference(baseline)
        if named.recipe is None and not ready_form(named, models_dir, listener.on_download if listener else None):
            raise OptionError(
                f"--baseline {baseline} does not name a format", f"for example: --baseline {baseline}:gguf-f32"
            )
        base = find(baseline)
    else:
        origin = _common_origin(forms)
        base = find(f"{_checkpoint(origin)}:{_baseline_recipe(origin, forms[0])}")
        _require_same_revision(forms, base)
    check_names({base, *forms})
    if not wants_noise_floor or all(form.format == base.format for form in forms):
        return EvalForms(base, None, tuple(forms))
    floor = _floor_reference(base)
    warning = (
        f"localq can't make an artifact like {base.name} for the other engine: how much of the figures comes from the "
        "difference between the engines is not known"
    )
    return EvalForms(base, find(floor) if floor else None, tuple(forms), () if floor else (warning,))


def _common_origin(forms: Sequence[Form]) -> Manifest:
    """A manifest that names the checkpoint that all were made from."""
    manifests: dict[tuple[str, str], Manifest] = {}
    for form in forms:
        manifest = _manifest(form)
        if manifest is None:
            raise OptionError(
                f"{form.name} was not made by localq, so its original is not known",
                "name what to compare it with: --baseline REF",
            )
        manifests[manifest.model, manifest.source] = manifest
    if len(manifests) > 1:
        models = ", ".join(sorted({manifest.model for manifest in manifests.values()}))
        raise OptionError(
            f"these artifacts are of {len(manifests)} models: {models}",
            "evaluate one model at a time, or name what to compare all with: --baseline REF",
        )
    (origin,) = manifests.values()
    return origin


def _manifest(form: Form) -> Manifest | None:
    return None if form.path.is_file() else read_manifest(form.path)


def _checkpoint(origin: Manifest) -> str:
    """The reference of the checkpoint: its folder, if that still exists."""
    return origin.source if Path(origin.source).is_absolute() and Path(origin.source).is_dir() else origin.model


def _baseline_recipe(origin: Manifest, form: Form) -> str:
    if origin.parameters < _SMALL_PARAMETERS:
        return "gguf-f32"
    config = read_config(form.path)
    return f"gguf-{_PRECISIONS.get(str(config.get('torch_dtype') or config.get('dtype')), 'bf16')}"


def _require_same_revision(forms: Sequence[Form], baseline: Form) -> None:
    made_from = _manifest(baseline)
    for form in forms:
        manifest = _manifest(form)
        if manifest and made_from and manifest.revision != made_from.revision:
            raise OptionError(
                f"{form.name} and {baseline.name} were made from different revisions of {manifest.source}",
                f"make it again: localq convert {manifest.source} --to {form.recipe} --force",
            )


def _floor_reference(baseline: Form) -> str | None:
    """The unquantized artifact for the other engine; None if localq can't make or run one."""
    origin = _manifest(baseline)
    other = "mlx" if baseline.format == "gguf" else "gguf"
    precision = baseline.recipe.partition("-")[2]
    if origin is None or precision not in _UNQUANTIZED or not has_backend(other):
        return None
    return f"{_checkpoint(origin)}:{other}-{precision}"
