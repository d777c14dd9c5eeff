"""File systems after a power cut, rebuilt from recorded calls: what was not synced may be there, or not.

A name (made, renamed, exchanged, deleted) is on the disk after a later sync of its folder, the bytes of a file after a
later sync of the file. Of the rest each call may be lost on its own, and what is kept may come in another order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Call:
    """A recorded call that succeeded."""

    kind: str
    first: str
    second: str
    offset: int
    data: bytes


def read_calls(record: Path) -> list[Call]:
    """What faults.c recorded."""
    raw, calls, place = record.read_bytes(), [], 0
    while place < len(raw):
        line_end = raw.index(b"\n", place)
        kind, first, second, offset, length = raw[place:line_end].decode().split("\t")
        place = line_end + 1 + int(length)
        calls.append(Call(kind, first, second, int(offset), raw[line_end + 1 : place]))
    return [call for call in calls if call.kind != "other"]


@dataclass(frozen=True)
class _Entry:
    """A name in a folder that changes from one node to another; None is no node."""

    folder: int
    name: str
    old: int | None
    new: int | None


class FileSystem:
    """Folders and files as numbered nodes."""

    def __init__(self, folder: Path) -> None:
        self._root = str(folder)
        self._folders: dict[int, dict[str, int]] = {}
        self._files: dict[int, bytearray] = {}
        self._top = self._read(folder)

    def _read(self, path: Path) -> int:
        node = len(self._folders) + len(self._files)
        if path.is_dir():
            self._folders[node] = {}
            for child in sorted(path.iterdir()):
                self._folders[node][child.name] = self._read(child)
        else:
            self._files[node] = bytearray(path.read_bytes())
        return node

    def _node(self, path: str) -> int | None:
        node: int | None = self._top
        for name in path.removeprefix(self._root).strip("/").split("/"):
            if name:
                node = self._folders.get(-1 if node is None else node, {}).get(name)
        return node

    def _new(self, is_folder: bool, data: bytes = b"") -> int:
        node = len(self._folders) + len(self._files)
        if is_folder:
            self._folders[node] = {}
        else:
            self._files[node] = bytearray(data)
        return node

    def _entry(self, path: str, new: int | None) -> _Entry:
        parent, _, name = path.rpartition("/")
        folder = self._node(parent)
        assert folder is not None, path
        return _Entry(folder, name, self._folders[folder].get(name), new)

    def _entries(self, call: Call) -> list[_Entry]:
        """The names that a call changes, all of them in one step."""
        if call.kind in ("mkdir", "create"):
            return [self._entry(call.first, self._new(call.kind == "mkdir"))]
        if call.kind == "unlink":
            return [self._entry(call.first, None)]
        if call.kind == "link":
            node = self._node(call.first) if call.first.startswith(self._root) else None
            return [self._entry(call.second, self._new(False, Path(call.first).read_bytes()) if node is None else node)]
        first, second = self._node(call.first), self._node(call.second)
        left = second if call.kind == "exchange" else None
        return [self._entry(call.first, left), self._entry(call.second, first)]

    def _apply(self, entries: list[_Entry]) -> None:
        for entry in entries:
            names = self._folders[entry.folder]
            if entry.new is not None:
                names[entry.name] = entry.new
            elif names.get(entry.name) == entry.old:
                names.pop(entry.name, None)

    def cut_power(self, calls: list[Call], draw: random.Random) -> None:
        """Do the calls, then lose what was not synced, as `draw` decides."""
        start = (
            {node: dict(names) for node, names in self._folders.items()},
            {node: bytes(data) for node, data in self._files.items()},
        )
        changes: list[list[_Entry] | tuple[int, Call]] = []
        synced: set[int] = set()
        for call in calls:
            if call.kind == "fsync":
                node = self._node(call.first)
                synced |= {number for number, change in enumerate(changes) if node in _nodes(change)}
            elif call.kind == "write":
                node = self._node(call.first)
                if node is not None:
                    changes.append((node, call))
            else:
                entries = self._entries(call)
                self._apply(entries)
                changes.append(entries)
        keep = draw.choice([0.0, 0.5, 0.9])
        kept = [number for number in range(len(changes)) if number in synced or draw.random() < keep]
        if draw.random() < 0.3:
            loose = [number for number in kept if number not in synced]
            draw.shuffle(loose)
            kept = [number for number in kept if number in synced] + loose
        self._folders = {node: dict(start[0].get(node, {})) for node in self._folders}
        made = {node: bytes(data) for node, data in self._files.items() if node not in start[1]}
        self._files = {node: bytearray(start[1].get(node, made.get(node, b""))) for node in self._files}
        for number in kept:
            change = changes[number]
            if isinstance(change, list):
                self._apply(change)
            else:
                data, call = self._files[change[0]], change[1]
                data.extend(bytes(max(0, call.offset + len(call.data) - len(data))))
                data[call.offset : call.offset + len(call.data)] = call.data

    def write(self, folder: Path) -> None:
        """Write it all to an empty place."""
        self._write(self._top, folder)

    def _write(self, node: int, path: Path) -> None:
        if node in self._files:
            path.write_bytes(self._files[node])
            return
        path.mkdir()
        for name, child in self._folders[node].items():
            self._write(child, path / name)


def _nodes(change: list[_Entry] | tuple[int, Call]) -> set[int]:
    """The folders or the file that a sync must name to bring a change to the disk."""
    return {entry.folder for entry in change} if isinstance(change, list) else {change[0]}
