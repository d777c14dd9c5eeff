"""Which `.gguf` files of a repository are which form: told by their names alone.

The file type stands in the name as a word of its own: `Name-Q4_K_M.gguf`, `name.q4_k_m.gguf`,
`Q4_K_M/Name-Q4_K_M-00001-of-00003.gguf`, `Name-UD-Q4_K_XL.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from localq.errors import DownloadError
from localq.gguf_file import part_names
from localq.tables import format_bytes

_FILE_TYPE = re.compile(
    r"(?<![a-z0-9])((?:ud-)?(?:i?q\d|tq\d|mxfp\d|nvfp\d|bf16|fp?16|fp?32)[a-z0-9_]*)", re.IGNORECASE
)
_NO_MODEL = re.compile(r"(?<![a-z])(mmproj|imatrix)(?![a-z])", re.IGNORECASE)
_OWN_MIX = "ud-"  # some files' tensors have types of their maker's choice, beside plain files of the same type


@dataclass(frozen=True, slots=True)
class HubForm:
    """A model in one file, or in the parts of one."""

    name: str
    """As references have it: `gguf-q4_k_m`; with the file's whole name where that tells no file type."""
    names: tuple[str, ...]
    """The parts, in order."""
    size_bytes: int

    @property
    def file_form(self) -> str:
        """The name of a form by its file's whole name."""
        return f"gguf-{_stem(self.names[0])}"


def choose_form(repo: str, sizes: Mapping[str, int], form: str) -> HubForm:
    """The form of that name among files with these sizes in bytes.

    Raises DownloadError, which names the files where several are that form, and else lists the forms there.
    """
    forms = gguf_forms(sizes)
    candidates = _named(forms, form) or [found for found in forms if found.name == f"gguf-{_OWN_MIX}{form[5:]}"]
    if not forms:
        raise DownloadError(f"{repo} has no .gguf file of a model, nor a checkpoint", "look for another repository")
    if not candidates:
        raise DownloadError(f"{repo} has no {form}", f"{there(forms)}: for example {repo}:{forms[0].name}")
    if len(candidates) > 1:
        files = ", ".join(found.names[0] for found in candidates)
        raise DownloadError(
            f"{repo} has several files that are {form}: {files}",
            f"name one by its file: {repo}:{candidates[0].file_form}",
        )
    return candidates[0]


def exact_form(sizes: Mapping[str, int], form: str) -> HubForm | None:
    """The form of that very name; None where there is none, or more than one."""
    candidates = _named(gguf_forms(sizes), form)
    return candidates[0] if len(candidates) == 1 else None


def gguf_forms(sizes: Mapping[str, int]) -> list[HubForm]:
    """All models among files with these sizes in bytes, the smallest first; no split one that lacks a part."""
    forms = []
    for name in sizes:
        path = PurePosixPath(name)
        if path.suffix.lower() != ".gguf" or _NO_MODEL.search(path.name):
            continue
        parts = [str(path.with_name(part)) for part in part_names(path.name)]
        if name == parts[0] and all(part in sizes for part in parts):
            forms.append(HubForm(_form_name(name), tuple(parts), sum(sizes[part] for part in parts)))
    return sorted(forms, key=lambda form: (form.size_bytes, form.names))


def there(forms: list[HubForm]) -> str:
    """The forms with their sizes, for people."""
    return "it has " + ", ".join(f"{form.name} ({format_bytes(form.size_bytes)})" for form in forms)


def _named(forms: list[HubForm], form: str) -> list[HubForm]:
    by_file = [found for found in forms if found.file_form == form]
    return by_file or [found for found in forms if found.name == form]


def _form_name(name: str) -> str:
    found = _FILE_TYPE.findall(_stem(name)) or _FILE_TYPE.findall(str(PurePosixPath(name).parent))
    kind = found[-1].lower().replace("fp16", "f16").replace("fp32", "f32") if found else _stem(name)
    return f"gguf-{kind}"


def _stem(name: str) -> str:
    """A file's name in lower case, without folder, suffix and number of a part."""
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", PurePosixPath(name).name.lower())
