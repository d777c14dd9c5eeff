"""What to measure: from model references to forms and their files. Makes missing forms; measures nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from localq.backends import default_recipe_names
from localq.context_length import ContextLimits, config_limits, gguf_limits
from localq.conversion.convert import ConversionListener, convert
from localq.errors import OptionError
from localq.gguf_file import model_name, part_names, read_model_header
from localq.json_files import read_config
from localq.measure.reports import FormFacts
from localq.model import chosen_recipe, ready_form
from localq.recipes import parse_recipe
from localq.reference import ModelReference, parse_reference
from localq.store.manifest import Artifact, read_artifact

_MOST_LEFT = 0.01
"""Share of a file's pages that may still be in memory: other programs read files too."""


class Form(FormFacts):
    """A model in one format, ready to be opened. Its recipe is `mlx` or `gguf` where localq did not make it."""

    path: Path
    """An artifact's folder, another MLX folder, or a `.gguf` file."""


def form_of(artifact: Artifact) -> Form:
    """An artifact of localq, to be measured."""
    manifest = artifact.manifest
    return Form(
        model=manifest.model,
        recipe=manifest.recipe,
        path=artifact.path if artifact.is_imported_file else artifact.folder,
        artifact_bytes=manifest.bytes,
        bits_per_weight=manifest.bits_per_weight,
    )


def find_forms(
    references: Sequence[str], models_dir: Path | None = None, listener: ConversionListener | None = None
) -> list[Form]:
    """The forms that references name, in their order, each once; one that was not made yet is made now.

    A reference without a recipe stands for the forms that `localq convert` makes by default, as far as this
    platform runs them. Raises errors of the tree in `localq.errors`.
    """
    forms = []
    for text in references:
        reference = parse_reference(text)
        ready = ready_form(reference, models_dir, listener.on_download if listener else None)
        if ready is not None:
            forms.append(_existing_form(ready, reference))
            continue
        recipes = [chosen_recipe(reference)] if reference.recipe else [*map(parse_recipe, default_recipe_names())]
        artifacts = convert(reference.without_recipe(), recipes, models_dir=models_dir, listener=listener)
        forms += [form_of(artifact) for artifact in artifacts]
    found = list(dict.fromkeys(forms))
    check_names(found)
    return found


def check_names(forms: Iterable[Form]) -> None:
    """Raise OptionError for two forms of one name, whose figures nobody could keep apart."""
    for name, count in Counter(form.name for form in forms).items():
        if count > 1:
            raise OptionError(f"{count} artifacts have the name {name}", "rename the file or folder of one of them")


def form_files(path: Path) -> list[Path]:
    """The files that are read when a form is opened: those of a folder, or all parts of a `.gguf` file."""
    files = [path.with_name(name) for name in part_names(path.name)] if path.is_file() else sorted(path.iterdir())
    return [file for file in files if file.is_file()]


def drop_from_cache(files: Iterable[Path]) -> bool:
    """Take the files out of the operating system's cache, so that they are read from the disk next time.

    Returns whether that worked, as `mincore` sees it. It does not where the system has no such call (macOS), where
    another process has a file mapped, on file systems that lie in memory, and (on Linux) for files that this user may
    not write.
    """
    return hasattr(os, "posix_fadvise") and all([_drop(file) for file in files])


def _drop(file: Path) -> bool:
    try:
        with file.open("rb", buffering=0) as opened:
            os.fsync(opened.fileno())  # pages that are not on the disk yet stay
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return _resident_share(opened.fileno()) <= _MOST_LEFT
    except OSError:
        return False


def _resident_share(descriptor: int) -> float:
    """Share of a file's pages that are in memory; 1 where the system does not say."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return 0.0
    # Private and writable, because ctypes gives no address of what is read-only; nothing is written.
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        del start  # the map can't be closed as long as something points into it
    return 1.0 if failed else sum(page & 1 for page in bytes(pages)) / len(pages)


def context_limits(form: Form) -> ContextLimits:
    """How long a context the form may have, by its headers."""
    return gguf_limits(read_model_header(form.path)) if form.path.is_file() else config_limits(read_config(form.path))


def _existing_form(path: Path, reference: ModelReference) -> Form:
    artifact = read_artifact(path.parent if path.is_file() else path)
    if artifact is not None and path in (artifact.folder, artifact.path):
        return form_of(artifact)
    model, recipe = (model_name(path), "gguf") if path.is_file() else (path.name, "mlx")
    if reference.kind == "repo":
        model, recipe = reference.name, reference.recipe.name if reference.recipe else recipe
    size = sum(file.stat().st_size for file in form_files(path))
    return Form(model=model, recipe=recipe, path=path, artifact_bytes=size, bits_per_weight=None)
