"""A file that `torch.save` of PyTorch 1.6 or newer wrote: where each tensor is. Runs no code, needs no PyTorch.

A zip archive: `NAME/data.pkl` is the pickle of a dict of tensors, `NAME/data/KEY` are their storages, `NAME/byteorder`
says which byte of a number comes first. The format and the words are those of PyTorch's torch/serialization.py and
torch/_utils.py: a storage is a row of elements; a tensor is a view of it, with offset, size and stride counted in
elements. Several tensors may share a storage.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from localq.checkpoint.tensors import DTYPE_BYTES, StoredTensor, StridedTensor, WeightTensor, require_plain_name
from localq.checkpoint.torch_pickle import CODE_HINT, PickleReader, StandIn
from localq.checkpoint.zip_directory import ZipEntry, read_zip_directory
from localq.disk import reason
from localq.errors import CheckpointError, UnsupportedModelError
from localq.regular_files import open_regular

_LARGEST_PICKLE_BYTES = 4_000_000
"""About 15,000 tensors. Limits the time and the memory that a hostile file can take."""

_DAMAGED_HINT = "the file is damaged or only partly downloaded: `localq pull --verify REPO` fetches it again"
_MALFORMED_HINT = (
    "the file is damaged, or holds more than plain tensors: download it again: `localq pull --verify REPO`"
)
_DICT_HINT = "localq reads what `torch.save(model.state_dict(), FILE)` writes"
_PLAIN_HINT = "localq reads plain tensors: take the model's original weights"
_SAVE_AGAIN_HINT = (
    "save it again where PyTorch is installed: "
    "python -c \"import torch; torch.save(torch.load('FILE', weights_only=True){}, 'FILE')\""
)


def read_torch_archive(file: Path) -> list[WeightTensor]:
    """Every tensor of a file, in the order of its dict. Reads no weights.

    Raises CheckpointError that names the file and the fault, UnsupportedModelError for tensors of a kind that localq
    does not read.
    """
    try:
        _refuse_other_formats(file)
        archive = _Archive(file)
        content = PickleReader(file, archive.find_global, archive.load_storage).read(archive.read_pickle())
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {reason(error)}", _DAMAGED_HINT) from error
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"{file} holds no dict of tensors that can be read: {_brief(error)}", _MALFORMED_HINT
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a dict of tensors, but of type {_kind(content)}", _DICT_HINT)
    return [_named(file, name, value) for name, value in content.items()]


@dataclass(frozen=True, slots=True)
class _Dtype:
    """A dtype, or the class of a storage of that dtype."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor that has no name yet."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """Of its first element, from the start of the file."""
    reach: int
    """Elements from its first one to the end of its storage."""

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements are together, row after row."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != expected:
                return 0 in self.shape
            expected *= length
        return True


def _rebuild_v2(
    storage: object, start: object, shape: object, strides: object, _requires_grad: object, *rest: object
) -> _View:
    """`rest` is hooks, always empty, and metadata: `conj` or `neg`, where values differ from what is stored."""
    if not isinstance(storage, _Storage) or any(rest):
        raise ValueError("a tensor without a storage, or with hooks or metadata")
    if not (_is_natural(start) and _is_naturals(shape) and _is_naturals(strides) and len(shape) == len(strides)):
        raise ValueError("a tensor with a wrong offset, size or stride")
    item_bytes = DTYPE_BYTES[storage.dtype]
    reach = storage.nbytes // item_bytes - start
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if reach < 0 or (0 not in shape and last >= reach):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    return _View(storage.dtype, shape, strides, storage.offset + start * item_bytes, reach)


def _rebuild_v3(
    storage: object, start: object, shape: object, strides: object, requires_grad: object, *rest: object
) -> _View:
    """As v2 with a dtype after the hooks, for dtypes without a class of storage."""
    hooks, dtype, *metadata = rest
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        raise ValueError("a tensor without a storage or a dtype")
    typed = _Storage(dtype.name, storage.offset, storage.nbytes)
    return _rebuild_v2(typed, start, shape, strides, requires_grad, hooks, *metadata)


def _rebuild_parameter(view: object, _requires_grad: object, hooks: object) -> _View:
    if not isinstance(view, _View) or hooks:
        raise ValueError("a parameter that is not a tensor, or has hooks")
    return view


def _ordered_dict() -> dict[str, object]:
    return {}


def _size(lengths: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(lengths)


_STORAGE_CLASSES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_STORAGE_CLASSES |= {"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"}
_STORAGE_CLASSES |= {"ByteStorage": "U8", "BoolStorage": "BOOL"}
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
_DTYPES |= {"int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32"}
_DTYPES |= {"uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}

_GLOBALS: dict[str, object] = {
    "collections.OrderedDict": StandIn(_ordered_dict),
    "torch.Size": StandIn(_size),
    "torch._utils._rebuild_tensor_v2": StandIn(_rebuild_v2),
    "torch._utils._rebuild_tensor_v3": StandIn(_rebuild_v3),
    "torch._utils._rebuild_parameter": StandIn(_rebuild_parameter),
    "torch.storage.UntypedStorage": _Dtype("U8"),
    **{f"torch.{name}": _Dtype(dtype) for name, dtype in (_STORAGE_CLASSES | _DTYPES).items()},
}
"""Every name in the pickle of a dict of plain tensors."""

_KINDS = {"torch._utils._rebuild_sparse": "sparse tensors", "torch._utils._rebuild_qtensor": "quantized tensors"}
_KINDS |= {"torch._utils._rebuild_meta": "tensors without data", "torch.Complex": "complex tensors"}
_KINDS |= {"torch.Q": "quantized tensors", "torch.q": "quantized tensors"}
"""By the start of a name that only such tensors have."""


class _Archive:
    """The entries of one file, and the values of the names in its pickle."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries = read_zip_directory(file)
        roots = [name.removesuffix("/data.pkl") for name in self._entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(f"{file} is a zip archive, but torch.save did not write it", _DICT_HINT)
        self._root = roots[0]
        if f"{self._root}/constants.pkl" in self._entries:
            raise UnsupportedModelError(f"{file} is a TorchScript program, not a dict of tensors", _DICT_HINT)
        # Older versions write no byte order; nearly all machines were little-endian.
        if f"{self._root}/byteorder" in self._entries and self._read("byteorder", 6) != b"little":
            raise UnsupportedModelError(f"{file} was saved on a big-endian machine", _SAVE_AGAIN_HINT.format(""))

    def read_pickle(self) -> bytes:
        raw = self._read("data.pkl", _LARGEST_PICKLE_BYTES)
        if self._find("data.pkl").crc32 not in (0, zlib.crc32(raw)):  # 0 where PyTorch was set to compute none
            raise ValueError("data.pkl has a wrong checksum")
        return raw

    def find_global(self, name: str) -> object:
        """See `PickleReader`."""
        if name in _GLOBALS:
            return _GLOBALS[name]
        for start, kind in _KINDS.items():
            if name.startswith(start):
                raise UnsupportedModelError(f"{self._file} holds {kind} ({_brief(name)})", _PLAIN_HINT)
        raise CheckpointError(
            f"{self._file} would run {_brief(name)}, and localq runs no code from a checkpoint",
            _DICT_HINT if name.startswith("torch._") else CODE_HINT,
        )

    def load_storage(self, identity: object) -> _Storage:
        """See `PickleReader`: ("storage", class, key, device, number of elements)."""
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise ValueError("a persistent id that is not a storage")
        _, kind, key, _, count = identity
        if not isinstance(kind, _Dtype) or not isinstance(key, str) or not _is_natural(count):
            raise ValueError("a storage with a wrong class, key or size")
        entry = self._find(f"data/{key}")
        if entry.nbytes != count * DTYPE_BYTES[kind.name]:
            raise ValueError(
                f"storage {key} has {entry.nbytes:,} bytes, which do not fit {count:,} elements of {kind.name}"
            )
        return _Storage(kind.name, entry.offset, entry.nbytes)

    def _find(self, name: str) -> ZipEntry:
        entry = self._entries.get(f"{self._root}/{name}")
        if entry is None or not entry.is_stored:
            raise ValueError(f"entry {name} is missing, compressed or encrypted")
        return entry

    def _read(self, name: str, most_bytes: int) -> bytes:
        entry = self._find(name)
        if entry.nbytes > most_bytes:
            raise ValueError(f"entry {name} has {entry.nbytes:,} bytes, more than {most_bytes:,}")
        with open_regular(self._file) as stream:
            stream.seek(entry.offset)
            return stream.read(entry.nbytes)


def _refuse_other_formats(file: Path) -> None:
    """Refuse the other files that people have under the name of a weight file, by their first bytes."""
    with open_regular(file) as stream:
        start = stream.read(512)
    if start[257:262] == b"ustar":
        raise UnsupportedModelError(f"{file} was saved by PyTorch 0.1", "look for the model in safetensors")
    if start.startswith(b"\x80"):
        raise UnsupportedModelError(
            f"{file} was saved in the format that PyTorch had before 1.6",
            f"{_SAVE_AGAIN_HINT.format('')}; or look for the model in safetensors",
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a pointer of git-lfs, not the weights", "`git lfs pull` brings them")
    if start[8:9] == b"{":
        raise CheckpointError(f"{file} looks like safetensors", "rename it to model.safetensors")
    if start.lstrip()[:1] in (b"<", b"{"):
        raise CheckpointError(f"{file} is a web page or a message, not the weights", "open it to see what it says")
    if not start.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{file} is not a file that torch.save writes", _DAMAGED_HINT)


def _named(file: Path, name: str, view: object) -> WeightTensor:
    if not isinstance(view, _View):
        inner = _SAVE_AGAIN_HINT.format(f"[{name!r}]") if isinstance(view, dict) and name.isidentifier() else _DICT_HINT
        raise CheckpointError(f"{file}: entry {_brief(name)} is not a tensor, but of type {_kind(view)}", inner)
    require_plain_name(file, name)
    if view.is_contiguous:
        return StoredTensor(name, view.dtype, view.shape, file, view.offset)
    if len(view.shape) > 2 or 0 in view.strides or math.prod(view.shape) > view.reach:
        raise UnsupportedModelError(
            f"{file}: tensor {name} of shape {view.shape} is a view with strides {view.strides}",
            "save it again after `tensor = tensor.contiguous()`",
        )
    return StridedTensor(
        name, view.shape, view.strides, StoredTensor(name, view.dtype, (view.reach,), file, view.offset)
    )


def _is_natural(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63  # `type`, because True is an int as well


def _is_naturals(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and len(values) <= 64 and all(map(_is_natural, values))


def _kind(value: object) -> str:
    """The type of a value; not the value, which may be deeply nested."""
    return "tensor" if isinstance(value, _View) else type(value).__name__


def _brief(text: object) -> str:
    """Quoted, because it may hold control characters, and cut, because it may be long."""
    quoted = repr(str(text))
    return quoted if len(quoted) <= 100 else f"{quoted[:100]}..."
