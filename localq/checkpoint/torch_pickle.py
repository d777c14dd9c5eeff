"""Pickles read as plain data: nothing that a file names is looked up, imported or called.

Python's unpickler imports and calls what a pickle names, allocates a memo as large as the pickle says, and
crashes on keys that are nested deeply enough. This one has only the opcodes that `torch.save` needs for a dict of
tensors. Its caller decides what each name means: a `StandIn` or a value. Knows nothing of tensors.

The opcodes are described in Python's module `pickletools`, which also splits a pickle into them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError

CODE_HINT = "don't open it with other tools unless you trust its maker; look for the model in safetensors"


@dataclass(frozen=True, slots=True)
class StandIn:
    """A function of localq's own in place of one that a pickle names: the only thing that is ever called."""

    function: Callable[..., object]


@dataclass(frozen=True, slots=True)
class PickleReader:
    """What the names and the persistent ids in a file's pickle mean."""

    file: Path
    find_global: Callable[[str], object]
    """From `module.name`, any text that the file holds, to a `StandIn` or a value. Raises CheckpointError."""
    load_persistent: Callable[[object], object]

    def read(self, raw: bytes) -> object:
        """The object that a pickle describes. Takes time and memory in proportion to its length.

        Raises CheckpointError for opcodes and names that no dict of tensors needs, ValueError, TypeError or
        LookupError for a damaged pickle.
        """
        machine = _Machine(self)
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name == "STOP":
                return machine.pop(1)[0]
            machine.execute(opcode.name, argument)
        raise ValueError("no end")


class _Machine:
    """The stack that a pickle works on, its marks, and the memo: values that it uses again."""

    def __init__(self, reader: PickleReader) -> None:
        self._reader = reader
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def execute(self, opcode: str, argument: Any) -> None:
        if opcode in _ARGUMENT_OPCODES:
            self._stack.append(argument)
        elif opcode in _CONSTANT_OPCODES:
            self._stack.append(_CONSTANT_OPCODES[opcode])
        elif opcode in _TUPLE_LENGTHS:
            self._stack.append(tuple(self.pop(_TUPLE_LENGTHS[opcode])))
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in _IGNORED_OPCODES:
            raise CheckpointError(
                f"{self._reader.file} holds more than tensors, perhaps code (pickle opcode {opcode})",
                CODE_HINT,
            )

    def pop(self, count: int) -> list[Any]:
        """The topmost `count` values, the deepest first."""
        if count > len(self._stack):
            raise ValueError("the stack is empty")
        start = len(self._stack) - count
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        return self.pop(max(0, len(self._stack) - self._marks.pop()))

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _empty_list(self, _: None) -> None:
        self._stack.append([])

    def _empty_dict(self, _: None) -> None:
        self._stack.append({})

    def _append(self, _: None) -> None:
        self._extend(self.pop(1))

    def _appends(self, _: None) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("an item for a value that is not a list")
        self._stack[-1].extend(values)

    def _setitem(self, _: None) -> None:
        self._update(self.pop(2))

    def _setitems(self, _: None) -> None:
        self._update(self._pop_to_mark())

    def _update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("an item for a value that is not a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Text only: Python's hash of a tuple recurses as deep as the tuple is nested.
            if not isinstance(key, str) or key in target:
                raise ValueError("a key that is not text, or is there twice")
            target[key] = value

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _memoize(self, _: None) -> None:
        self._put(len(self._memo))

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _global(self, module_and_name: str) -> None:
        self._stack.append(self._reader.find_global(".".join(module_and_name.split(" ", 1))))

    def _stack_global(self, _: None) -> None:
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        self._stack.append(self._reader.find_global(f"{module}.{name}"))

    def _instance(self, module_and_name: str) -> None:
        self._global(module_and_name)
        raise ValueError("an instance of a value that is not a class")

    def _persistent(self, _: None) -> None:
        self._stack.append(self._reader.load_persistent(self.pop(1)[0]))

    def _reduce(self, _: None) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, StandIn) or not isinstance(arguments, tuple):
            raise ValueError("a call of a value that is not a function")
        self._stack.append(function.function(*arguments))

    def _build(self, _: None) -> None:
        """Attributes: a state dict has only the versions of its modules, which are no weights."""
        target, state = self.pop(2)
        if not isinstance(target, dict) or not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise ValueError("attributes that a state dict does not have")
        self._stack.append(target)


_ARGUMENT_OPCODES = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)
_CONSTANT_OPCODES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLE_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED_OPCODES = frozenset(("PROTO", "FRAME"))
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "EMPTY_LIST": _Machine._empty_list,
    "EMPTY_DICT": _Machine._empty_dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "INST": _Machine._instance,
    "BINPERSID": _Machine._persistent,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
}
