"""What a calibration measured, for people and for `--json`: shared by `localq calibrate` and `localq show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localq.store.layout import CALIBRATION_NAME
from localq.tables import format_bytes, format_table

if TYPE_CHECKING:
    from localq.calibration.calibration import Calibration

_SHOWN = 5
"""Of the most and of the least sensitive tensors."""


def calibration_record(found: Calibration) -> dict[str, Any]:
    """For `--json`. The errors of the types are in the file."""
    record = {name: value for name, value in found.record().items() if name not in ("errors", "importance_sha256")}
    return {
        "recipe": CALIBRATION_NAME,
        **record,
        "path": str(found.path),
        "importance_path": str(found.importance_path),
        "bytes": found.bytes,
    }


def calibration_text(found: Calibration) -> str:
    """Where a calibration comes from, and the most and the least sensitive tensors."""
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    lines = [
        f"{found.model}: calibration",
        f"  path         {found.folder}",
        f"  source       {found.source}",
        f"  revision     {found.revision}",
        f"  made         {found.created} in {found.seconds:.1f} s",
        f"  with         {versions}",
        f"  measured as  {found.measured_as}",
        *(f"  text         {text.sha256[:16]}  {text.tokens:>7,} tokens  {text.name}" for text in found.texts),
        f"  size         {format_bytes(found.bytes)}",
    ]
    ranked = sorted(found.divergence, key=lambda name: -found.divergence[name])
    shown = [("most", ranked[:_SHOWN]), ("least", ranked[_SHOWN:][-_SHOWN:])]
    rows = [[name, f"{found.divergence[name]:.2g}", rank] for rank, names in shown for name in names]
    table = format_table(["tensor", "KL divergence", "sensitive"], rows, ends_with_text=True)
    return "\n".join([*lines, "", "KL divergence of the model when only this tensor has 3 bits:", "", table])
