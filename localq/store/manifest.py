"""An artifact and its manifest, the file `localq.json` that is written last."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from localq.errors import StoreError
from localq.recipes import Recipe, parse_recipe
from localq.regular_files import is_there, read_regular
from localq.store.layout import MANIFEST_NAME
from localq.tables import format_bytes

_FORMAT_VERSION = 1
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of an artifact."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor that got another type than the recipe asks for, because its rows can't be divided into blocks."""

    tensor: str
    wanted: str
    used: str


@dataclass(frozen=True, slots=True)
class ImportanceRecord:
    """The importance matrix that a format was quantized with."""

    file: str
    """Its name, without the folder."""
    sha256: str
    is_calibration: bool
    """Whether it is of the model's calibration, and not a file that was given."""
    datasets: tuple[str, ...]
    """The texts that it was measured on, as it names them."""
    entries: int
    """Tensors that it has importances of."""
    chunk_count: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where an artifact comes from, how it was made, and what it holds."""

    model: str
    """As `localq ls` shows it."""
    source: str
    """Repository or absolute folder of the checkpoint, or the name of a built-in."""
    revision: str
    """Commit of the hub, or fingerprint of a folder."""
    recipe: str
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    """Of localq and of the libraries that made the artifact."""
    parameters: int
    weight_bytes: int
    """Only tensor data: what `bits_per_weight` counts."""
    seconds: float
    """How long the conversion took: the whole pass, in which other artifacts may have been made as well."""
    main_file: str
    """The `.gguf` file; empty for an MLX folder, which a runtime opens as a folder."""
    files: tuple[FileRecord, ...]
    fallbacks: tuple[Fallback, ...] = ()
    pre_tokenizer: str | None = None
    """What the user gave instead of the tokenizer's own rule (GGUF)."""
    quantizer: str | None = None
    """What computed the quantized blocks (GGUF): ggml, or localq with the same bytes."""
    importance: ImportanceRecord | None = None
    """Of a calibrated format."""
    predicted_kl_divergence: float | None = None
    """Mean, in nats, that the model's calibration predicts; None where there was none."""

    @property
    def bits_per_weight(self) -> float:
        """8 x weight bytes / parameters."""
        return 8 * self.weight_bytes / self.parameters

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> str:
        return json.dumps({"format_version": _FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A converted model on disk; `localq.load(artifact)` opens it."""

    folder: Path
    manifest: Manifest

    @property
    def recipe(self) -> Recipe:
        return parse_recipe(self.manifest.recipe)

    @property
    def path(self) -> Path:
        """What a runtime opens: the `.gguf` file, or the MLX folder."""
        return self.folder / self.manifest.main_file if self.manifest.main_file else self.folder

    @property
    def name(self) -> str:
        """The reference that finds it: `org/name:recipe`."""
        return f"{self.manifest.model}:{self.manifest.recipe}"

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"<Artifact {self.name}, {format_bytes(self.manifest.bytes)}, {self.path}>"


def read_artifact(folder: Path) -> Artifact | None:
    """The artifact in a folder; None where there is none.

    Raises StoreError for a manifest that can't be read, or files that are missing or of another size.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    for record in manifest.files:
        found = folder / record.name
        if not found.is_file() or found.stat().st_size != record.bytes:
            source = manifest.source if Path(manifest.source).is_absolute() else manifest.model
            raise StoreError(
                f"{found} is missing or not {record.bytes:,} bytes long",
                f"make it again: localq convert {shlex.quote(source)} --to {manifest.recipe} --force",
            )
    return Artifact(folder, manifest)


def read_manifest(folder: Path) -> Manifest | None:
    """Only the manifest; the files are not checked. None where there is none. Raises StoreError if it is damaged."""
    file = folder / MANIFEST_NAME
    if not is_there(file):
        return None
    try:
        return _parse(json.loads(read_regular(file, _MOST_BYTES)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{file} can't be read", f"delete the folder {folder} and convert again") from error


def _parse(value: dict[str, Any]) -> Manifest:
    if value.pop("format_version") != _FORMAT_VERSION:
        raise ValueError("written by another version of localq")
    known = {field.name for field in fields(Manifest)}
    value["files"] = tuple(FileRecord(**record) for record in value["files"])
    value["fallbacks"] = tuple(Fallback(**record) for record in value.get("fallbacks", ()))
    importance = value.get("importance")
    if importance is not None:
        value["importance"] = ImportanceRecord(**{**importance, "datasets": tuple(importance["datasets"])})
    manifest = Manifest(**{key: item for key, item in value.items() if key in known})
    parse_recipe(manifest.recipe)
    names = {record.name for record in manifest.files}
    inside = all(Path(name).name == name for name in names) and manifest.main_file in {"", *names}
    sizes = [manifest.parameters, manifest.weight_bytes, *(record.bytes for record in manifest.files)]
    if not inside or not all(type(size) is int and size >= 0 for size in sizes) or manifest.parameters == 0:
        raise ValueError("not a manifest of localq")
    return manifest
