"""Forms of a public model's shape with random weights, for as long as they are measured: how fast would it be here?

A shape is what the `config.json` of a public Llama or Phi model says, kept in `shapes.json` beside this file: facts of
the repository that `_name_or_path` names. It stands for every fine-tune of the same model.

The forms are what a conversion of a checkpoint of that shape gives, tensor by tensor, except for the values, on which
speed and size don't depend. No file of weights is ever there in full precision: one piece of each type and row length
is quantized, and its bytes are written over and over, as fast as the disk takes them.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import DTYPE_BYTES, PIECE_ELEMENTS, WeightFiles, from_float32
from localq.checkpoint.weights import Weights
from localq.context_length import config_limits
from localq.conversion.gguf import GgufFile, Rows
from localq.conversion.mlx import MlxFolder
from localq.conversion.plan import ConversionPlan, Plan, Recipes, Request, memory_use, plan_conversion
from localq.conversion.plan_mlx import MlxTensor
from localq.conversion.writing import Writers, write_forms
from localq.disk import disk_errors, temporary_folder
from localq.errors import EngineError, OptionError
from localq.families.config import parse_config
from localq.families.table import family_of
from localq.measure.forms import Form, form_of
from localq.memory import require_memory
from localq.options import LoadOptions
from localq.reference import ModelReference
from localq.store.layout import MANIFEST_NAME
from localq.store.manifest import Artifact, Manifest
from localq.store.store import Store
from localq.store.upkeep import remove_leftovers
from localq.tables import format_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STANDARD_DEVIATION = 0.02
"""`initializer_range` of Llama and Phi: what matrices are initialized with, and almost what training ends with."""
_DTYPES = {"bfloat16": "BF16", "float16": "F16"}


def shape_config(name: str) -> dict[str, Any]:
    """The `config.json` of a shape, named in any letter case.

    LongRoPE's two lists of factors are made up, of the right length: all ones, which cost what any others do. Raises
    OptionError that lists the names, the nearest one first.
    """
    known = _table().get(name.lower())
    if known is None:
        nearest_first = difflib.get_close_matches(name.lower(), _table(), len(_table()), 0.0)
        raise OptionError(f"localq knows no shape {name!r}", f"it knows: {', '.join(nearest_first)}")
    scaling = known.get("rope_scaling") or {}
    if scaling.get("type") != "longrope":
        return dict(known)
    ones = [1.0] * (parse_config(known).rotated_width // 2)
    return {**known, "rope_scaling": {**scaling, "short_factor": ones, "long_factor": ones}}


def shape_names() -> list[str]:
    """The names that `shape_config` knows."""
    return list(_table())


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table


@contextmanager
def shape_forms(
    shape_name: str,
    recipes: Recipes = None,
    options: LoadOptions | None = None,
    *,
    models_dir: Path | str | None = None,
    on_step: Callable[[str], None] = lambda line: None,
) -> Iterator[list[Form]]:
    """Forms of a shape on disk, in the order of `recipes`; without them those that `localq convert` makes by default.

    They lie in the models folder, where only this process sees them, and are removed at the end; what a process that
    was killed left there is removed like any half-written form. Two processes take turns for the same form.

    Forms that don't fit in the free memory beside the ones before them, opened with `options`, are left out. Raises
    OptionError for an unknown shape or a context beyond the model's, EngineError where no form fits in the memory,
    StoreError where they don't fit on the disk, and what a conversion raises.
    """
    name, shape = shape_name.lower(), shape_config(shape_name)
    store = Store(models_dir)
    with ExitStack() as stack:
        with temporary_folder() as folder:
            checkpoint = _checkpoint(name, shape, folder)
            request = Request(ModelReference("built-in", name), recipes, models_dir)
            found = plan_conversion(request, lambda reference: checkpoint)
            found = replace(found, plans=_fitting_plans(found, options or LoadOptions(), on_step))
            needed_bytes = sum(plan.weight_bytes for plan in found.plans.values())
            remove_leftovers(store)
            store.check_room(needed_bytes)
            # By name, so that two processes don't wait for each other.
            folders = {}
            for recipe in sorted((plan.recipe for plan in found.plans.values()), key=lambda recipe: recipe.name):
                wait = partial(on_step, f"another localq measures this shape as {recipe.name}: waiting for it")
                folders[recipe.name] = stack.enter_context(store.writing(found.reference, recipe, wait, "temporary"))
            on_step(f"writing {format_bytes(needed_bytes)} of random weights in the shape of {name}")
            (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
            _write_tokenizer(folder / "tokenizer.json", checkpoint.config.vocabulary_size)
            writers = Writers(_RepeatedGgufFile, _RepeatedMlxFolder)
            manifests = write_forms(found, folders, lambda recipes, done_bytes, total_bytes: None, writers)
        yield [_form(store, folders[recipe], manifests[recipe]) for recipe in found.plans]


def _form(store: Store, folder: Path, manifest: Manifest) -> Form:
    """An artifact that is complete, but never published."""
    with disk_errors(store.folder):
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return form_of(Artifact(folder, manifest))


def _fitting_plans(found: ConversionPlan, options: LoadOptions, say: Callable[[str], None]) -> dict[str, Plan]:
    """Those that can be in memory together, the first ones first. Raises EngineError where there are none."""
    import psutil

    config = found.checkpoint.config
    context_length = config_limits(config.raw).chosen(options.context_length)
    fitting: dict[str, Plan] = {}
    refusals: list[EngineError] = []
    taken_bytes = 0
    for recipe in found.wanted:
        plan, form_name = found.plans[recipe.name], f"{found.checkpoint.name}:{recipe.name}"
        use = memory_use(plan, config, options)
        try:
            require_memory(form_name, recipe.format, use, context_length, taken_bytes)
        except EngineError as error:
            refusals.append(error)
            continue
        free_bytes, needed_bytes = psutil.virtual_memory().available - taken_bytes, use.needed_bytes(context_length)
        taken_bytes += needed_bytes
        fitting[recipe.name] = plan
        say(
            f"{form_name} {format_bytes(plan.weight_bytes)}, needs about {format_bytes(needed_bytes)} of memory with a "
            f"context of {context_length:,} tokens; {format_bytes(free_bytes)} are free"
        )
    if not fitting:
        raise EngineError("; ".join(refusal.message for refusal in refusals), refusals[-1].hint)
    for refusal in refusals:
        say(f"warning: left out: {refusal.message}: {refusal.hint}")
    return fitting


class _OncePerKind:
    """Encodes one piece of each type and size; the others of its kind have the same bytes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pieces: dict[tuple[object, ...], Any] = {}

    def _piece(self, kind: tuple[object, ...], encode: Callable[[], Any]) -> Any:
        if kind not in self._pieces:
            self._pieces[kind] = encode()
        return self._pieces[kind]


class _RepeatedGgufFile(_OncePerKind, GgufFile):
    def encoded(self, rows: Rows) -> Any:
        encode = partial(super().encoded, rows)
        kind = rows.tensor.type_name, rows.tensor.columns, rows.stop - rows.start
        return self._piece(kind, encode) if len(rows.tensor.shape) > 1 else encode()


class _RepeatedMlxFolder(_OncePerKind, MlxFolder):
    def encoded(self, tensor: MlxTensor, rows: NDArray[Any]) -> Any:
        encode = partial(super().encoded, tensor, rows)
        return self._piece((tensor.dtype, tensor.quantization, rows.shape), encode) if rows.ndim > 1 else encode()


@dataclass(frozen=True, slots=True)
class _RandomTensor:
    """A matrix whose every piece begins the same block of random values, or a vector; a `WeightTensor`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    block: NDArray[Any]
    files: tuple[Path, ...] = ()

    @property
    def nbytes(self) -> int:
        """That a file would have."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """A norm is all ones, a bias all zeros: so values stay in bounds over all layers."""
        import numpy as np

        if len(self.shape) < 2:
            value = 1.0 if self.name.endswith(".weight") else 0.0
            return from_float32(np.full(stop - start, value, dtype=np.float32), self.dtype)
        return np.resize(self.block, (stop - start, self.shape[-1]))


class _RandomWeights(Weights):
    """Tensors without files."""

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """As they are: known to be finite, which takes time to check in a large model."""
        return self.tensors[name].read_rows(WeightFiles(), start, stop)


def _checkpoint(name: str, shape: dict[str, Any], folder: Path) -> Checkpoint:
    """A checkpoint without files of weights. Raises UnsupportedModelError or CheckpointError for its config."""
    import numpy as np

    config, family, dtype = parse_config(shape), family_of(shape), _DTYPES[shape["torch_dtype"]]
    family.check(config)
    layouts = tuple(family.tensors(config))
    values = np.random.default_rng(0).standard_normal(PIECE_ELEMENTS, dtype=np.float32)
    block = from_float32(_STANDARD_DEVIATION * values, dtype)
    weights = {layout.name: _RandomTensor(layout.name, dtype, layout.shape, block) for layout in layouts}
    return Checkpoint(name, "random", folder, config, family, _RandomWeights(weights), layouts)


def _write_tokenizer(file: Path, size: int) -> None:
    """Byte-level BPE of so many tokens with the rule of GPT-2, without special tokens: no token ends a text.

    Real vocabularies have about as many merges, so that opening it takes about as long.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(itertools.islice(_merges(alphabet), size - len(alphabet)))
    tokens = [*alphabet, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: token_id for token_id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(file))


def _merges(alphabet: list[str]) -> Iterator[tuple[str, str]]:
    """All pairs of bytes, then these with each byte behind, and so on: no text comes twice."""
    texts = alphabet
    while True:
        yield from itertools.product(texts, alphabet)
        texts = ["".join(pair) for pair in itertools.product(texts, alphabet)]
