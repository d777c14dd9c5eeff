"""Looks into llama.cpp while it computes: the input of each product with a weight, whose output may be changed.

llama.cpp calls an evaluation callback (`cb_eval`) with each operation, before and after it is computed. llama_cpp has
no structure for the `ggml_tensor *` that it gets, so it is declared here and compared with the library at run time.
Source: ggml's include/ggml.h, `ggml_backend_sched_compute_splits` in ggml/src/ggml-backend.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localq.engines.llamacpp import LlamaCppEngine
from localq.engines.llamacpp_loading import interruptible, llama_api, load_context
from localq.errors import EngineError
from localq.options import LoadOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DIMENSIONS, _SOURCES, _NAME_BYTES, _PARAMETER_BYTES = 4, 10, 64, 64  # GGML_MAX_DIMS, _SRC, _NAME, _OP_PARAMS
_OBJECT_BYTES = 32  # sizeof(struct ggml_object), which `ggml_tensor_overhead` adds
_NUMPY_TYPES = {0: "f4", 26: "i4"}  # GGML_TYPE_F32, GGML_TYPE_I32

DENSE, EXPERTS, LOOKUP = "MUL_MAT", "MUL_MAT_ID", "GET_ROWS"
"""ggml's names: x times the transposed weight; the same with some experts' weights for each token; rows of it."""


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("sizes", ctypes.c_int64 * _DIMENSIONS),
    ("strides", ctypes.c_size_t * _DIMENSIONS),
    ("operation", ctypes.c_int),
    ("parameters", ctypes.c_int32 * (_PARAMETER_BYTES // 4)),
    ("flags", ctypes.c_int32),
    ("sources", ctypes.POINTER(_Tensor) * _SOURCES),
    ("view_source", ctypes.c_void_p),
    ("view_offset", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _NAME_BYTES),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class Product:
    """A product with a weight, as soon as it is computed; valid only while the observer sees it."""

    def __init__(self, tensor: _Tensor, operation: str, weight: str) -> None:
        self._tensor = tensor
        self.operation = operation
        """DENSE, EXPERTS or LOOKUP."""
        self.weight = weight
        """The weight's name in the GGUF file, such as `blk.0.attn_q.weight`."""

    @property
    def expert_count(self) -> int:
        """1 for a dense weight."""
        return int(self._source(0).sizes[2])

    def inputs(self) -> NDArray[np.float32]:
        """What the weight is multiplied by: shape (tokens, inputs, columns).

        There is one input for each token, or one for each expert that the token is given to.
        """
        source = _read(self._source(1))
        return source[0] if self.operation == EXPERTS else source.reshape(-1, 1, source.shape[-1])

    def experts(self) -> NDArray[np.int32]:
        """The experts that each token is given to: shape (tokens, experts per token)."""
        experts = _read(self._source(2))
        return experts.reshape(experts.shape[-2:])

    def looked_up(self) -> NDArray[np.int32]:
        """The rows of a lookup: shape (tokens,)."""
        return _read(self._source(1)).reshape(-1)

    def add(self, change: NDArray[np.float32]) -> None:
        """Add to the output, of shape (tokens, experts per token, rows); 1 expert per token where it is dense."""
        output = _read(self._tensor)
        output += change.reshape(output.shape)
        if not _is_in_memory(self._tensor):
            _ggml().ggml_backend_tensor_set(ctypes.byref(self._tensor), output.ctypes.data, 0, output.nbytes)

    def _source(self, number: int) -> _Tensor:
        source: _Tensor = self._tensor.sources[number].contents
        return source


class Observer(Protocol):
    """Sees the products that it wants, in the order in which they are computed."""

    def wants(self, operation: str, weight: str) -> bool:
        """Whether to see it."""

    def see(self, product: Product) -> bool:
        """It is computed; its output may be changed now. False where the rest of the pass need not be computed."""


class ObservedEngine(LlamaCppEngine):
    """A GGUF model whose products with weights an observer sees, and may change."""

    def __init__(self, path: Path, options: LoadOptions, context_length: int) -> None:
        """Load a `.gguf` file. Raises EngineError where llama.cpp is not as expected, else as `open_engine`."""
        api = llama_api()
        _check_structure()
        self._observer: Observer | None = None
        self._raised: BaseException | None = None
        self._goes_on: Callable[[float, Any], bool] = lambda _progress, _user_data: True
        self._callback = api.ggml_backend_sched_eval_callback(self._evaluated)  # must outlive the context
        loaded = load_context(path, options, context_length, self._callback)
        super().__init__(loaded, context_length, options)

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """What is computed in the block is shown to the observer."""
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def _compute(self, tokens: Sequence[int], outputs: int = 1) -> None:
        # Python would raise KeyboardInterrupt inside the callback, where ctypes drops exceptions.
        with interruptible() as self._goes_on:
            super()._compute(tokens, outputs)
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised

    def _evaluated(self, address: int, asks: bool, _user_data: object) -> bool:
        try:
            return self._shown(_Tensor.from_address(address), asks)
        except BaseException as error:
            self._raised = self._raised or error
            return False

    def _shown(self, tensor: _Tensor, asks: bool) -> bool:
        """With `asks`, whether the observer wants it; else whether the rest of the pass is to be computed."""
        operation = _operations().get(tensor.operation)
        if self._observer is None or operation is None:
            return not asks
        if not self._goes_on(0, None):
            return asks  # wanted, and then broken off
        weight = _weight_name(tensor)
        if asks:
            is_input = tensor.sources[1].contents.type == 0 or operation == LOOKUP
            return is_input and self._observer.wants(operation, weight)
        return self._observer.see(Product(tensor, operation, weight))


def _weight_name(tensor: _Tensor) -> str:
    """A graphics card's copy is named `CUDA0#blk.0.attn_q.weight#0`."""
    name: str = tensor.sources[0].contents.name.decode(errors="replace")
    return name.split("#")[1] if "#" in name else name


def _is_in_memory(tensor: _Tensor) -> bool:
    return bool(_ggml().ggml_backend_buffer_is_host(tensor.buffer))


def _read(tensor: _Tensor) -> NDArray[Any]:
    """Its values, slowest dimension first: a view where they are in this process's memory, else a copy."""
    import numpy as np

    nbytes = _ggml().ggml_nbytes(ctypes.byref(tensor))
    if _is_in_memory(tensor):
        data: Any = (ctypes.c_char * nbytes).from_address(tensor.data)
    else:
        data = ctypes.create_string_buffer(nbytes)
        _ggml().ggml_backend_tensor_get(ctypes.byref(tensor), data, 0, nbytes)
    shape, strides = tuple(tensor.sizes)[::-1], tuple(tensor.strides)[::-1]
    return np.ndarray(shape, _NUMPY_TYPES[tensor.type], data, strides=strides)


@cache
def _ggml() -> Any:
    from llama_cpp._ggml import libggml

    pointer, size = ctypes.POINTER(_Tensor), ctypes.c_size_t
    functions: dict[str, tuple[Any, list[Any]]] = {
        "ggml_tensor_overhead": (size, []),
        "ggml_nbytes": (size, [pointer]),
        "ggml_op_name": (ctypes.c_char_p, [ctypes.c_int]),
        "ggml_op_desc": (ctypes.c_char_p, [pointer]),
        "ggml_get_name": (ctypes.c_char_p, [pointer]),
        "ggml_set_name": (pointer, [pointer, ctypes.c_char_p]),
        "ggml_backend_buffer_is_host": (ctypes.c_bool, [ctypes.c_void_p]),
        "ggml_backend_tensor_get": (None, [pointer, ctypes.c_void_p, size, size]),
        "ggml_backend_tensor_set": (None, [pointer, ctypes.c_void_p, size, size]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(libggml, name)
        function.restype, function.argtypes = result, arguments
    return libggml


@cache
def _operations() -> dict[int, str]:
    """The numbers of the operations that have a weight."""
    names = {number: _ggml().ggml_op_name(number).decode() for number in range(64)}
    return {number: name for number, name in names.items() if name in (DENSE, EXPERTS, LOOKUP)}


@cache
def _check_structure() -> None:
    """Raise EngineError where the library's `ggml_tensor` is another one than `_Tensor`."""
    ggml, probe = _ggml(), _Tensor()
    is_same = ggml.ggml_tensor_overhead() == ctypes.sizeof(_Tensor) + _OBJECT_BYTES
    if is_same:
        ggml.ggml_set_name(ctypes.byref(probe), b"probe")
        probe.operation = next(number for number, name in _operations().items() if name == LOOKUP)
        probe.type, probe.sizes[:], probe.strides[:] = 0, (3, 2, 1, 1), (4, 12, 24, 24)
        seen = probe.name, ggml.ggml_get_name(ctypes.byref(probe)), ggml.ggml_op_desc(ctypes.byref(probe))
        is_same = seen == (b"probe", b"probe", LOOKUP.encode()) and ggml.ggml_nbytes(ctypes.byref(probe)) == 24
    if not is_same:
        raise EngineError(
            "this version of llama-cpp-python lays out its tensors differently: a model can't be calibrated with it",
            "install the version of llama-cpp-python that localq was tested with, 0.3.36",
        )
