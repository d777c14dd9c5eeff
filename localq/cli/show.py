"""`localq show`: the manifests of a model's artifacts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localq.cli.arguments import Json, ModelsDir, Reference
from localq.cli.fallbacks import describe_fallbacks
from localq.cli.output import emit, emit_json, say
from localq.errors import CalibrationError, ModelNotFoundError
from localq.tables import format_bytes

if TYPE_CHECKING:
    from localq.calibration.calibration import Calibration
    from localq.reference import ModelReference
    from localq.store.manifest import Artifact
    from localq.store.store import Store


def show(ref: Reference, models_dir: ModelsDir = None, json: Json = False) -> None:
    """Show how a model's artifacts were made, and their files.

    Without a format also what `localq calibrate` measured, with the most and the least sensitive tensors.
    """
    from localq.cli.calibration import calibration_record, calibration_text
    from localq.reference import parse_reference
    from localq.store.store import Store

    store, reference = Store.existing(models_dir), parse_reference(ref)
    calibration = _calibration(store, reference)
    try:
        artifacts = store.require(reference)
    except ModelNotFoundError:
        if calibration is None:
            raise
        artifacts = []
    if json:
        records = [_record(artifact) for artifact in artifacts]
        emit_json([*records, *([calibration_record(calibration)] if calibration else [])])
        return
    texts = [_text(artifact) for artifact in artifacts]
    emit("\n\n".join([*texts, *([calibration_text(calibration)] if calibration else [])]))


def _calibration(store: Store, reference: ModelReference) -> Calibration | None:
    """What was measured of the model; only where no format is named."""
    from localq.calibration.calibration import read_calibration

    if reference.recipe is not None or reference.kind == "gguf":
        return None
    try:
        return read_calibration(store, reference)
    except CalibrationError as error:
        say(f"warning: {error.message}; {error.hint}")
        return None


def _record(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        **asdict(manifest),
        "path": str(artifact.path),
        "bytes": manifest.bytes,
        "bits_per_weight": manifest.bits_per_weight,
    }


def _text(artifact: Artifact) -> str:
    manifest = artifact.manifest
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    lines = [
        artifact.name,
        f"  path         {artifact.path}",
        f"  source       {manifest.source}",
        f"  revision     {manifest.revision}",
        f"  made         {manifest.created} in {manifest.seconds:.1f} s",
        f"  with         {versions}",
        f"  parameters   {manifest.parameters:,}",
        f"  bits/weight  {manifest.bits_per_weight:.3f}",
        f"  size         {format_bytes(manifest.bytes)}",
        *([f"  importance   {used.sha256[:16]}  {used.file}"] if (used := manifest.importance) else []),
        *([f"  note         {describe_fallbacks(manifest.fallbacks)}"] if manifest.fallbacks else []),
        *(f"  file         {file.sha256[:16]}  {file.bytes:>14,}  {file.name}" for file in manifest.files),
    ]
    return "\n".join(lines)
