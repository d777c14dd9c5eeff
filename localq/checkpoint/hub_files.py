"""Which files of a repository make a checkpoint, and which `.gguf` file is which format. Uses no hub and no network.

A repository is known by its files' names and sizes; of the contents only the index of the weight files is read.
The type of a `.gguf` file is a word of its name: `Name-Q4_K_M.gguf`, `name.q4_k_m.gguf`,
`Q4_K_M/Name-Q4_K_M-00001-of-00003.gguf`, `Name-UD-Q4_K_XL.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from localq.checkpoint.weights import SAFETENSORS, TORCH, WeightFormat, read_index
from localq.errors import CheckpointError, DownloadError
from localq.gguf_file import part_names
from localq.tables import format_bytes
from localq.text.tokenizer_json import TOKENIZER_SOURCES, has_tokenizer

_OTHER_WEIGHTS = frozenset((".bin", ".ckpt", ".gguf", ".h5", ".npz", ".onnx", ".pt", ".pth", ".safetensors"))
_FILE_TYPE = re.compile(
    r"(?<![a-z0-9])((?:ud-)?(?:i?q\d|tq\d|mxfp\d|nvfp\d|bf16|fp?16|fp?32)[a-z0-9_]*)", re.IGNORECASE
)
_NO_MODEL = re.compile(r"(?<![a-z])(mmproj|imatrix)(?![a-z])", re.IGNORECASE)
_OWN_MIX = "ud-"  # its maker chose a type for each tensor; plain files of the same type may be there too


def weight_format(names: Collection[str]) -> WeightFormat | None:
    """The format in which a repository has weights, the better one of two; None where localq converts none."""
    return next((kind for kind in (SAFETENSORS, TORCH) if {kind.index_name, kind.single_name} & set(names)), None)


def require_checkpoint(repo: str, sizes: Mapping[str, int]) -> WeightFormat:
    """The format of a repository's weights; `sizes` are the bytes of its files.

    Raises DownloadError for a repository that localq could not convert: it names what is missing, or there instead.
    """
    kind = weight_format(sizes)
    if kind is None:
        raise _no_weights(repo, sizes)
    if "config.json" not in sizes:
        raise DownloadError(f"{repo} has no config.json", "look for the base model: this may be an adapter")
    if not has_tokenizer(sizes):
        raise DownloadError(
            f"{repo} has no tokenizer.json and no other tokenizer", "look for a repository of the model that has one"
        )
    return kind


def needed_names(repo: str, names: Collection[str], kind: WeightFormat, folder: Path) -> list[str]:
    """What to fetch of `names`; if there is an index, `folder` has it already.

    The small files first, the weights last: so a download that stops early is plainly incomplete.
    Raises DownloadError when the index names a file that the repository does not have.
    """
    weights = _indexed_names(folder, kind) if kind.index_name in names else {kind.single_name}
    missing = sorted(weights.difference(names))
    if missing:
        message = f"{repo} does not have {missing[0]}, which its {kind.index_name} names"
        raise DownloadError(message, "only its owner can correct that: look for another repository of the model")
    return sorted(name for name in names if _is_small_and_needed(name, kind)) + sorted(weights)


def is_complete(folder: Path) -> bool:
    """Whether a folder has what every checkpoint has: configuration, tokenizer, every weight file.

    tokenizer_config.json is needed too: without it a missing chat template would not be noticed.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    if any(path.is_symlink() and not path.exists() for path in paths):  # something was removed from the cache
        return False
    names = {path.name for path in paths if path.is_file()}
    kind = weight_format(names)
    if kind is None or not names >= {"config.json", "tokenizer_config.json"} or not has_tokenizer(names):
        return False
    try:
        return kind.index_name not in names or _indexed_names(folder, kind) <= names
    except CheckpointError:
        return False


def _no_weights(repo: str, sizes: Mapping[str, int]) -> DownloadError:
    if forms := gguf_forms(sizes):
        return DownloadError(
            f"{repo} has no checkpoint, only .gguf files, which are converted already; {_listed(forms)}",
            f"name the one to download: {repo}:{forms[0].name}",
        )
    kinds = sorted({PurePosixPath(name).suffix for name in sizes} & _OTHER_WEIGHTS)
    found = f"its weights are {', '.join(kinds)}" if kinds else "it has no other weights either"
    return DownloadError(
        f"{repo} has no {SAFETENSORS.single_name} and no {TORCH.single_name}; {found}",
        "localq pulls checkpoints in Hugging Face format, MLX folders and .gguf files",
    )


def _is_small_and_needed(name: str, kind: WeightFormat) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) > 1 or (name.endswith(".index.json") and name != kind.index_name):
        return False
    return path.suffix in (".json", ".jinja") or name in TOKENIZER_SOURCES


def _indexed_names(folder: Path, kind: WeightFormat) -> set[str]:
    """The weight files that the index names. Raises CheckpointError for an index that can't be used."""
    names, suffix = set(read_index(folder / kind.index_name).values()), PurePosixPath(kind.single_name).suffix
    other = sorted(name for name in names if PurePosixPath(name).suffix != suffix)
    if other:
        raise CheckpointError(
            f"{folder / kind.index_name} names {other[0]!r}, which is no {suffix} file",
            "look for another repository of the model",
        )
    return names


@dataclass(frozen=True, slots=True)
class HubForm:
    """A model in one `.gguf` file, or in the parts of a split one."""

    name: str
    """As references have it: `gguf-q4_k_m`; with the file's whole name where that holds no file type."""
    names: tuple[str, ...]
    """The parts, in order."""
    size_bytes: int

    @property
    def file_form(self) -> str:
        """The same by the file's whole name."""
        return f"gguf-{_stem(self.names[0])}"


def choose_form(repo: str, sizes: Mapping[str, int], form: str) -> HubForm:
    """The `.gguf` file of a format among files with these sizes in bytes.

    Raises DownloadError, which names the files where several have the format, and else lists the formats there.
    """
    forms = gguf_forms(sizes)
    candidates = _named(forms, form) or [found for found in forms if found.name == f"gguf-{_OWN_MIX}{form[5:]}"]
    if not forms:
        raise DownloadError(f"{repo} has no .gguf file of a model, and no checkpoint", "look for another repository")
    if not candidates:
        raise DownloadError(f"{repo} has no {form}", f"{_listed(forms)}: for example {repo}:{forms[0].name}")
    if len(candidates) > 1:
        files = ", ".join(found.names[0] for found in candidates)
        raise DownloadError(
            f"{repo} has several files that are {form}: {files}",
            f"name one by its file: {repo}:{candidates[0].file_form}",
        )
    return candidates[0]


def exact_form(sizes: Mapping[str, int], form: str) -> HubForm | None:
    """The `.gguf` file of exactly this format; None where there is none, or more than one."""
    candidates = _named(gguf_forms(sizes), form)
    return candidates[0] if len(candidates) == 1 else None


def gguf_forms(sizes: Mapping[str, int]) -> list[HubForm]:
    """All models among files with these sizes in bytes, the smallest first; a split one only with all its parts."""
    forms = []
    for name in sizes:
        path = PurePosixPath(name)
        if path.suffix.lower() != ".gguf" or _NO_MODEL.search(path.name):
            continue
        parts = [str(path.with_name(part)) for part in part_names(path.name)]
        if name == parts[0] and all(part in sizes for part in parts):
            forms.append(HubForm(_form_name(name), tuple(parts), sum(sizes[part] for part in parts)))
    return sorted(forms, key=lambda form: (form.size_bytes, form.names))


def _listed(forms: list[HubForm]) -> str:
    """The formats with their sizes, for people."""
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
