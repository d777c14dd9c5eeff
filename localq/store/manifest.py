"""An artifact and its manifest, the file `localq.json` that is written last."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localq.disk import reason
from localq.errors import StoreError
from localq.recipes import Recipe, parse_recipe
from localq.regular_files import read_regular
from localq.store.layout import MANIFEST_NAME
from localq.tables import format_bytes

_FORMAT_VERSION = 2
_NO_CHECKSUM = b"0" * 64
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
    imported: bool = False
    """Whether another program made it; `source` is the file or folder that it was imported from."""

    @property
    def bits_per_weight(self) -> float:
        """8 x weight bytes / parameters."""
        return 8 * self.weight_bytes / self.parameters

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> str:
        empty = _NO_CHECKSUM.decode()
        head = {"format_version": _FORMAT_VERSION, "checksum": empty}
        text = json.dumps({**head, **asdict(self)}, indent=2) + "\n"
        return text.replace(empty, _checksum(text.encode()), 1)


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
    def is_imported_file(self) -> bool:
        """Whether it is a `.gguf` file of another program, alone: its vocabulary is in the file."""
        return self.manifest.imported and bool(self.manifest.main_file)

    @property
    def last_used(self) -> datetime:
        """When it was opened last, or made: the time of its manifest, which `touch` sets."""
        try:
            return datetime.fromtimestamp((self.folder / MANIFEST_NAME).stat().st_mtime, UTC)
        except OSError:  # deleted in this moment
            return datetime.fromisoformat(self.manifest.created)

    def touch(self) -> None:
        """Note that it is used now; does nothing where the folder is read-only."""
        with suppress(OSError):
            os.utime(self.folder / MANIFEST_NAME)

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
    while manifest is not None:
        wrong = next((record for record in manifest.files if not _has_its_size(folder, record)), None)
        if wrong is None:
            return Artifact(folder, manifest)
        before, manifest = manifest, read_manifest(folder)
        if manifest == before:  # else another process replaced or removed the artifact in this moment
            raise StoreError(f"{folder / wrong.name} is missing or not {wrong.bytes:,} bytes long", again_hint(before))
    return None


def again_hint(manifest: Manifest) -> str:
    """The command that makes an artifact again."""
    source = shlex.quote(manifest.source if Path(manifest.source).is_absolute() else manifest.model)
    if manifest.imported:
        return f"import it again: localq import {source} --name {manifest.model} --as {manifest.recipe} --force"
    return f"make it again: localq convert {source} --to {manifest.recipe} --force"


def _has_its_size(folder: Path, record: FileRecord) -> bool:
    file = folder / record.name
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"{file} can't be read: {reason(error)}", "check its permissions, and the disk") from error
    return stat.S_ISREG(found.st_mode) and found.st_size == record.bytes


def read_manifest(folder: Path) -> Manifest | None:
    """Only the manifest; the files are not checked. None where there is none.

    Raises StoreError if it is damaged, or written by a newer localq.
    """
    file = folder / MANIFEST_NAME
    try:
        text = read_regular(file, _MOST_BYTES)
        value = json.loads(text)
        version = value.pop("format_version")
        if type(version) is int and version > _FORMAT_VERSION:
            raise StoreError(
                f"{file} was written by a newer localq: version {version} of the manifest; this one reads "
                f"up to {_FORMAT_VERSION}",
                "update localq",
            )
        if version not in (1, _FORMAT_VERSION) or not _has_its_checksum(text, value.pop("checksum", None), version):
            raise ValueError("it was changed")
        return _parse(value)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{file} can't be read", f"delete the folder {folder} and convert again") from error


def _has_its_checksum(text: bytes, checksum: Any, version: int) -> bool:
    """Whether the SHA-256 is that of the file's text with zeros in its own place. Version 1 had none."""
    if checksum is None:
        return version == 1
    return bool(checksum == _checksum(text.replace(str(checksum).encode(), _NO_CHECKSUM, 1)))


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _parse(value: dict[str, Any]) -> Manifest:
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
