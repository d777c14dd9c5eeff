"""Torture of the models folder: failing calls, kills, power cuts, many processes, damage. Linux only.

    python -m tests.torture.store faults kills crashes races corruptions [--cases N] [--seed N]

Each part prints one line for the table in README.md, and every case that fails. Ctrl-C ends a part early.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from localq.conversion.convert import convert
from localq.importing import import_form
from localq.reference import parse_reference
from localq.store.manifest import Artifact
from localq.store.store import Store, problem_of
from localq.store.upkeep import check_artifacts, remove_leftovers
from tests.tiny_checkpoints import write_checkpoint
from tests.torture import faults
from tests.torture.crashes import FileSystem, read_calls

RECIPES = ["gguf-q8_0", "mlx-4bit"]
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EMFILE, errno.EINVAL)


@dataclass(frozen=True)
class Operation:
    """What is done to a models folder, and what must be there afterwards."""

    name: str
    act: Callable[[Path], object]
    before: Path
    """The models folder at first."""
    kept: frozenset[str]
    """Names of artifacts that are there whatever happens."""
    made: frozenset[str] = frozenset()
    """Those that are there after a success."""
    gone: frozenset[str] = frozenset()
    """Those that are not."""


class Workshop:
    """Checkpoints, models folders to begin with, and operations; all below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = write_checkpoint(folder / "one" / "model", "llama-3", seed=1)
        other = write_checkpoint(folder / "two" / "model", "llama-3", seed=2)
        self._names = frozenset(f"local/model:{recipe}" for recipe in RECIPES)
        self._empty, self._full, self._left = (folder / name for name in ("empty", "full", "left"))
        self._empty.mkdir()
        # In a process of its own: the threads of a conversion must not be in the one that forks.
        filled = faults.run(self._fill, self._full)
        assert filled.status == 0, filled.said
        shutil.copytree(other, self.checkpoint, dirs_exist_ok=True)  # a new version of it: what --force makes differs
        self.gguf = folder / "foreign.gguf"
        shutil.copyfile(next(self._full.glob("*/gguf-*/*.gguf")), self.gguf)
        self._leave()

    def _fill(self) -> None:
        convert(self.checkpoint, RECIPES, models_dir=self._full)
        import_form(self._full / "local--model" / "gguf-q8_0" / "model-Q8_0.gguf", name="org/in", models_dir=self._full)

    def _leave(self) -> None:
        """What killed processes left: an old artifact whose place is empty, and things half written or half deleted."""
        shutil.copytree(self._full, self._left)
        model = self._left / "local--model"
        (model / "gguf-q8_0").rename(model / ".gguf-q8_0.replaced")
        shutil.copytree(model / "mlx-4bit", model / ".mlx-4bit.partial-12")
        shutil.copytree(model / "mlx-4bit", model / ".mlx-8bit.partial")
        (model / ".mlx-8bit.partial" / "localq.json").unlink()
        shutil.copytree(model / "mlx-4bit", model / ".mlx-8bit.removed-1")

    def _convert(self, models: Path, force: bool) -> None:
        convert(self.checkpoint, RECIPES, models_dir=models, force=force)

    def _import(self, models: Path, force: bool) -> None:
        import_form(self.gguf, name="org/in", models_dir=models, force=force)

    def operations(self) -> list[Operation]:
        """All of them."""
        imported, nothing = frozenset({"org/in:gguf-q8_0"}), frozenset[str]()
        everything = self._names | imported
        return [
            Operation("convert", partial(self._convert, force=False), self._empty, nothing, self._names),
            Operation("convert --force", partial(self._convert, force=True), self._full, everything, everything),
            Operation("import", partial(self._import, force=False), self._empty, nothing, imported),
            Operation("import --force", partial(self._import, force=True), self._full, everything, everything),
            Operation("rm", _remove, self._full, imported, imported, self._names),
            Operation("prune", lambda models: remove_leftovers(Store(models), lost=True), self._left, everything),
        ]


def _remove(models: Path) -> None:
    store = Store(models)
    for folder in store.require_folders(parse_reference("local/model")):
        store.remove(folder)


def faulty(models: Path) -> Iterator[str]:
    """What is wrong with a models folder: every visible artifact must be whole, to the last bit."""
    store = Store(models)
    yield from (str(problem_of(folder)) for folder in store.damaged())
    artifacts = store.artifacts()
    for artifact, names in zip(artifacts, check_artifacts(artifacts, lambda done, total: None), strict=True):
        yield from (f"{artifact.name}: {name} changed" for name in names)


def names_in(models: Path) -> set[str]:
    """Of all artifacts."""
    return {artifact.name for artifact in Store(models).artifacts()}


def checked(operation: Operation, models: Path, status: int) -> list[str]:
    """What is wrong after an operation that ended with `status`; then after a prune and a second run."""
    wrong = list(faulty(models))
    there = names_in(models)
    if status == 0:
        wrong += [f"{name} is not there after a success" for name in operation.made - there]
        wrong += [f"{name} is there after a success" for name in operation.gone & there]
    remove_leftovers(Store(models), lost=True)
    wrong += [f"{path} is left after prune" for path in models.glob("*/.*") if path.parent.name != ".locks"]
    wrong += [f"{name} is lost" for name in operation.kept - names_in(models)]
    return [*wrong, *faulty(models)]


class Tally:
    """Counts cases and prints those that fail."""

    newest: Tally

    def __init__(self, part: str) -> None:
        Tally.newest = self
        self.part, self.cases, self.failed, self._started = part, 0, 0, time.perf_counter()

    def add(self, case: str, wrong: list[str]) -> None:
        """One case."""
        self.cases += 1
        if wrong:
            self.failed += 1
            sys.stdout.write(f"{self.part}: {case}\n" + "".join(f"    {line}\n" for line in wrong))
            sys.stdout.flush()

    def end(self, note: str = "") -> int:
        """Print the line of the table; returns how many failed."""
        seconds = time.perf_counter() - self._started
        sys.stdout.write(f"| {self.part} | {self.cases:,} | {self.failed} | {seconds:.0f} s | {note} |\n")
        sys.stdout.flush()
        return self.failed


def torture_faults(shop: Workshop, cases: int, draw: random.Random) -> int:
    """Every call of every operation fails in turn, with each of six errors; at most `cases`."""
    tally, plans = Tally("failing calls"), []
    for operation in shop.operations():
        calls = _run_once(shop, operation).calls
        plans += [(operation, at, number) for at in range(calls) for number in ERRORS]
    in_all = len(plans)
    draw.shuffle(plans)
    for operation, at, number in plans[:cases]:
        with _models(shop, operation) as models:
            ended = faults.run(partial(operation.act, models), models, at, number)
            wrong = [] if ended.status in (0, 1) else [f"ended with {ended.status}: {ended.said}"]
            tally.add(
                f"{operation.name}, call {at}, {errno.errorcode[number]}",
                wrong + checked(operation, models, ended.status),
            )
    return tally.end(f"of {in_all:,} calls and errors")


def torture_kills(shop: Workshop, cases: int, draw: random.Random) -> int:
    """`cases` kills of every operation, half of them at a chosen call, half at any time."""
    tally = Tally("kills")
    for operation in shop.operations():
        started = time.perf_counter()
        calls = _run_once(shop, operation).calls
        seconds = time.perf_counter() - started
        for number in range(cases):
            with _models(shop, operation) as models:
                at = draw.randrange(calls) if number % 2 else -1
                child = faults.start(partial(operation.act, models), models, at, draw.choice((-1, -2)))
                if at < 0:
                    time.sleep(draw.random() * seconds)
                    faults.kill(child)
                ended = faults.end(child, models)
                wrong = [] if ended.status in (0, -9) else [f"ended with {ended.status}: {ended.said}"]
                tally.add(f"{operation.name}, call {at}", wrong + checked(operation, models, ended.status))
    return tally.end("per operation " + str(cases))


def torture_crashes(shop: Workshop, cases: int, draw: random.Random) -> int:
    """`cases` power cuts, each behind another recorded call."""
    tally, recorded = Tally("power cuts"), []
    for operation in shop.operations():
        with _models(shop, operation) as models:
            record = models.with_name("record")
            status = faults.run(partial(operation.act, models), models, record=record).status
            recorded.append((operation, models, status, read_calls(record)))
    for number in range(cases):
        operation, models, status, calls = recorded[number % len(recorded)]
        cut = draw.choice([len(calls), draw.randrange(len(calls) + 1)])
        shutil.copytree(operation.before, models)
        system = FileSystem(models)
        shutil.rmtree(models)
        system.cut_power(calls[:cut], draw)
        system.write(models)
        acknowledged = status if cut == len(calls) else -9
        tally.add(f"{operation.name}, cut behind call {cut} of {len(calls)}", checked(operation, models, acknowledged))
        shutil.rmtree(models)
    return tally.end()


def torture_races(shop: Workshop, cases: int, draw: random.Random) -> int:
    """`cases` rounds of 16 processes that do anything at the same time."""
    tally = Tally("rounds of 16 processes")
    models = shop.folder / "races"
    for number in range(cases):
        deeds = [draw.choice(_deeds(shop, models)) for _ in range(16)]
        children = [(faults.start(deed, models.with_name(f"races-{place}")), place) for place, deed in enumerate(deeds)]
        ends = [faults.end(child, models.with_name(f"races-{place}")) for child, place in children]
        allowed = ("there is no", "is there already", "nothing is left")
        wrong = [
            f"ended with {ended.status}: {ended.said}"
            for ended in ends
            if ended.status != 0 and not (ended.status == 1 and any(text in ended.said for text in allowed))
        ]
        wrong += list(faulty(models)) + [
            f"{path} is left" for path in models.glob("*/.*") if path.parent.name != ".locks"
        ]
        tally.add(f"round {number}", wrong)
    return tally.end(f"{16 * cases:,} commands")


def _deeds(shop: Workshop, models: Path) -> list[Callable[[], object]]:
    store = Store(models)
    return [
        lambda: convert(shop.checkpoint, "gguf-q8_0", models_dir=models),
        lambda: convert(shop.checkpoint, RECIPES, models_dir=models, force=True),
        lambda: import_form(shop.gguf, name="org/in", models_dir=models, force=True),
        lambda: _remove(models),
        lambda: store.remove(models / "org--in" / "gguf-q8_0"),
        lambda: remove_leftovers(store, lost=True),
        lambda: _raise_if(list(faulty(models))),
        lambda: store.artifacts(),
    ]


def _raise_if(wrong: list[str]) -> None:
    if wrong:
        raise RuntimeError(wrong)


def torture_corruptions(shop: Workshop, cases: int, draw: random.Random) -> int:
    """`cases` times one artifact is damaged in one way; verify must see each."""
    tally = Tally("corruptions")
    models = shop.folder / "damaged"
    full = shop.operations()[1].before
    for number in range(cases):
        shutil.copytree(full, models)
        artifact = draw.choice(Store(models).artifacts())
        said = _damage(artifact, draw)
        seen = list(faulty(models))
        tally.add(f"{number}: {artifact.name}, {said}", [] if seen else ["verify says nothing"])
        shutil.rmtree(models)
    return tally.end()


def _damage(artifact: Artifact, draw: random.Random) -> str:
    files = sorted(artifact.folder.iterdir())
    file = draw.choice(files)
    data = bytearray(file.read_bytes())
    way = draw.choice(["flip", "flip", "cut", "longer", "lost", "swapped", "zeros", "edited"])
    if way == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif way == "cut":
        del data[draw.randrange(len(data)) :]
    elif way == "longer":
        data += draw.randbytes(draw.randrange(1, 100))
    elif way == "zeros":
        place = draw.randrange(len(data))
        data[place : place + 64] = bytes(b ^ 255 for b in data[place : place + 64])
    elif way == "lost":
        file.unlink()
        return f"{file.name} lost"
    elif way == "swapped":
        other = draw.choice([name for name in files if name != file])
        spare = file.with_name("spare")
        file.rename(spare), other.rename(file), spare.rename(other)
        return f"{file.name} and {other.name} exchanged"
    elif way == "edited":
        file = artifact.folder / "localq.json"
        value = json.loads(file.read_text())
        value["files"][0]["sha256"] = "0" * 64
        data = bytearray(json.dumps(value).encode())
    file.write_bytes(data)
    return f"{file.name} {way}"


class _models:
    """A models folder to begin an operation with, deleted at the end; the checkpoint is another one then."""

    def __init__(self, shop: Workshop, operation: Operation) -> None:
        self._folder = shop.folder / "models"
        shutil.copytree(operation.before, self._folder)

    def __enter__(self) -> Path:
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)


def _run_once(shop: Workshop, operation: Operation) -> faults.Ended:
    with _models(shop, operation) as models:
        ended = faults.run(partial(operation.act, models), models)
        assert ended.status == 0, ended.said
        assert (wrong := checked(operation, models, 0)) == [], wrong
        return ended


PARTS: dict[str, tuple[Callable[[Workshop, int, random.Random], int], int]] = {
    "faults": (torture_faults, 3000),
    "kills": (torture_kills, 500),
    "crashes": (torture_crashes, 2000),
    "races": (torture_races, 200),
    "corruptions": (torture_corruptions, 1000),
}
"""With the usual number of cases; of kills that of each operation."""


def main() -> int:
    """Run the parts that are named; returns 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--cases", type=int, help="how many, for each part")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not faults.is_loaded():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that is started now
        return faults.run_again_with_faults("tests.torture.store")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="localq-torture-") as folder:
        shop = Workshop(Path(folder).resolve())
        for part in given.parts:
            torture, usual = PARTS[part]
            try:
                failed += torture(shop, given.cases or usual, random.Random(given.seed))
            except KeyboardInterrupt:  # enough of it
                failed += Tally.newest.end("stopped early")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("LOCALQ_MODELS", os.devnull)
    sys.exit(main())
