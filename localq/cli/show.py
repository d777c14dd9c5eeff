"""`localq show`: the manifests of a model's artifacts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localq.cli.arguments import Json, ModelsDir, Reference
from localq.cli.fallbacks import describe_fallbacks
from localq.cli.output import emit, emit_json
from localq.tables import format_bytes

if TYPE_CHECKING:
    from localq.store.manifest import Artifact


def show(ref: Reference, models_dir: ModelsDir = None, json: Json = False) -> None:
    """Show how a model's artifacts were made, and their files."""
    from localq.reference import parse_reference
    from localq.store.store import Store

    artifacts = Store.existing(models_dir).require(parse_reference(ref))
    if json:
        emit_json([_record(artifact) for artifact in artifacts])
        return
    emit("\n\n".join(_text(artifact) for artifact in artifacts))


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
        *([f"  note         {describe_fallbacks(manifest.fallbacks)}"] if manifest.fallbacks else []),
        *(f"  file         {file.sha256[:16]}  {file.bytes:>14,}  {file.name}" for file in manifest.files),
    ]
    return "\n".join(lines)
