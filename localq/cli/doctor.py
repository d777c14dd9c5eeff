"""`localq doctor`: examine a checkpoint, or describe this machine."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli.arguments import Json, ModelsDir
from localq.cli.completion import complete_recipe, complete_reference
from localq.cli.fallbacks import describe_fallbacks
from localq.cli.output import emit, emit_json
from localq.tables import format_bytes, format_table

if TYPE_CHECKING:
    from localq.checkpoint.source import CheckpointPlace
    from localq.doctor.checkpoint import Examination, Fault, Form
    from localq.measure.reports import Machine

_USUAL = ["mlx-4bit", "mlx-mixed-4-6", "mlx-8bit", "mlx-bf16"]
_USUAL += ["gguf-q4_0", "gguf-q4_k_m", "gguf-q5_k_m", "gguf-q6_k", "gguf-q8_0", "gguf-bf16"]
_WIDEST_COLUMNS = 100
_TEMPLATES = {"works": "with a chat template", "fails": "with a chat template that fails", "none": "no chat template"}


def doctor(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="org/name[@revision] in the cache, a folder or a toy.",
            autocompletion=complete_reference,
        ),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="Format to plan (repeatable; default: the usual ones).",
            autocompletion=complete_recipe,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Plan every format.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read all weights to find NaN and infinity.")] = False,
    models_dir: ModelsDir = None,
    json: Json = False,
) -> None:
    """Find a checkpoint's faults, and how to fix them.

    Without SOURCE, describe this machine.
    """
    if source is None:
        if to or every or deep:
            raise typer.BadParameter("--to, --all and --deep need a SOURCE")
        _machine(models_dir, json)
        return
    from localq.doctor.place import find_place
    from localq.reference import parse_reference

    found = _examine(find_place(parse_reference(source), models_dir), to, every, deep)
    if json:
        emit_json(_record(found))
    else:
        emit("\n\n".join(filter(None, [_summary(found), _forms(found), _remarks(found), _faults(found)])))
    if found.faults:
        raise typer.Exit(1)


def _examine(place: CheckpointPlace, to: list[str] | None, every: bool, deep: bool) -> Examination:
    import psutil

    from localq.cli.progress import ByteBar
    from localq.doctor.checkpoint import examine, read_all_weights
    from localq.recipes import RECIPES, parse_recipe

    recipes = [parse_recipe(name) for name in to or (RECIPES if every else _USUAL)]
    found = examine(place, recipes, psutil.virtual_memory().available)
    if deep:
        with ByteBar() as bar:
            read_all_weights(found, lambda done, total: bar.update("reading", done, total))
    return found


def _summary(found: Examination) -> str:
    facts = {"folder": str(found.place.folder)}
    if found.place.revision:
        facts["revision"] = found.place.revision
    config, family = found.config, found.family
    if config is not None and family is not None:
        layers = f"{config.layer_count:,} layers of width {config.hidden_size:,}"
        facts["family"] = f"{family.name} ({config.architecture}), {layers}"
        facts["context"] = f"{config.max_position_embeddings:,} tokens"
        if config.original_context_length < config.max_position_embeddings:
            facts["context"] += f", first trained on {config.original_context_length:,}"
        facts["context"] += f"; keys and values take {format_bytes(config.kv_cache_bytes_per_token)} per token"
    if found.checkpoint is not None:
        facts["parameters"] = f"{found.checkpoint.parameters:,}"
    if found.dtype_bytes:
        facts["weights"] = ", ".join(f"{format_bytes(count)} of {dtype}" for dtype, count in found.dtype_bytes.items())
    if found.stored_as:
        facts["stored as"] = found.stored_as
    if found.tokenizer is not None:
        facts["tokenizer"] = f"{found.tokenizer.vocabulary_size:,} tokens, {_TEMPLATES[found.chat_template]}"
    return "\n".join([found.place.name, *(_wrapped(f"  {name:<11} ", value) for name, value in facts.items())])


def _forms(found: Examination) -> str:
    rows = [
        [
            form.recipe.name,
            format_bytes(form.weight_bytes),
            f"{form.bits_per_weight:.2f}",
            format_bytes(form.memory_bytes),
            _fit(form),
        ]
        for form in found.forms
    ]
    return format_table(["format", "weights", "bits/weight", "in memory", "longest context here"], rows) if rows else ""


def _fit(form: Form) -> str:
    if not form.runs_here:
        return "does not run here"
    return f"{form.longest_context_tokens:,}" if form.longest_context_tokens else "does not fit"


def _remarks(found: Examination) -> str:
    """What there is to say on single formats, and on the model."""
    remarks = [_wrapped(f"{form.recipe.name}: ", describe_fallbacks(form.fallbacks)) for form in _uneven(found)]
    refusals: dict[Fault, list[str]] = {}
    for recipe, fault in found.refused.items():
        refusals.setdefault(fault, []).append(recipe)
    for fault, recipes in refusals.items():
        remarks += [_wrapped("", f"not possible: {', '.join(recipes)}"), _wrapped("  ", fault.message)]
        remarks += [_wrapped("  fix: ", fault.hint)] if fault.hint else []
    return "\n".join(remarks + [_wrapped("note: ", note) for note in found.notes])


def _uneven(found: Examination) -> list[Form]:
    return [form for form in found.forms if form.fallbacks]


def _faults(found: Examination) -> str:
    if not found.faults:
        weights = ", and no weight is NaN or infinite" if found.is_read_whole else "; --deep also reads all weights"
        return f"no fault found{weights}"
    lines = [f"{len(found.faults)} fault{'s' if len(found.faults) > 1 else ''}:"]
    following: list[Fault | None] = [*found.faults[1:], None]
    for number, (fault, after) in enumerate(zip(found.faults, following, strict=True), 1):
        lines.append(_wrapped(f"{number:>3}. ", fault.message))
        if fault.hint and (after is None or after.hint != fault.hint):  # one fix for all that share it
            lines.append(_wrapped("     fix: ", fault.hint))
    return "\n".join(lines)


def _wrapped(start: str, text: str) -> str:
    """A paragraph, its later lines indented below the text; no path and no command is broken at its hyphens."""
    columns = min(_WIDEST_COLUMNS, shutil.get_terminal_size((_WIDEST_COLUMNS, 24)).columns)
    return textwrap.fill(
        text,
        width=columns,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _record(found: Examination) -> dict[str, Any]:
    config, family, checkpoint = found.config, found.family, found.checkpoint
    return {
        "model": found.place.name,
        "path": str(found.place.folder),
        "revision": found.place.revision,
        "family": family.name if family else None,
        "architecture": config.architecture if config else None,
        "parameters": checkpoint.parameters if checkpoint else None,
        "weight_bytes_by_dtype": found.dtype_bytes,
        "stored_as": found.stored_as,
        "context_length_tokens": config.max_position_embeddings if config else None,
        "original_context_length_tokens": config.original_context_length if config else None,
        "kv_cache_bytes_per_token": config.kv_cache_bytes_per_token if config else None,
        "vocabulary_size": found.tokenizer.vocabulary_size if found.tokenizer else None,
        "chat_template": found.chat_template,
        "weights_read": found.is_read_whole,
        "forms": [{**asdict(form), "recipe": form.recipe.name} for form in found.forms],
        "refused": [{"recipe": name, **asdict(fault)} for name, fault in found.refused.items()],
        "notes": found.notes,
        "faults": [asdict(fault) for fault in found.faults],
    }


def _machine(models_dir: Path | None, json: bool) -> None:
    import psutil

    from localq.backends import BACKENDS, default_recipe_name, has_backend
    from localq.conversion.mlx_search import describe_search
    from localq.conversion.quantizer import describe_quantizer
    from localq.hardware import available_cores, memory_bandwidth_bytes_per_second
    from localq.measure.machine import describe_machine
    from localq.store.layout import models_folder

    machine, folder = describe_machine(), models_folder(models_dir)
    record = {
        **machine.model_dump(),
        "usable_cores": available_cores(),
        "free_memory_bytes": psutil.virtual_memory().available,
        "memory_bandwidth_bytes_per_second": memory_bandwidth_bytes_per_second(),
        "backends": {form: has_backend(form) for form in BACKENDS},
        "quantizer": describe_quantizer() if has_backend("gguf") else None,
        "mlx_search": describe_search() if has_backend("mlx") else None,
        "default_recipe": default_recipe_name(),
        "models_folder": str(folder),
        "free_disk_bytes": _free_disk_bytes(folder),
    }
    if json:
        emit_json(record)
    else:
        emit(_machine_text(machine, record))


def _free_disk_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _machine_text(machine: Machine, record: dict[str, Any]) -> str:
    bandwidth = f"{format_bytes(record['memory_bandwidth_bytes_per_second'])}/s"
    backends = {
        "gguf": "llama.cpp" if record["backends"]["gguf"] else "not installed: pip install llama-cpp-python",
        "mlx": ("on the GPU (Metal)" if machine.metal else "on the CPU: correct, but slow")
        if record["backends"]["mlx"]
        else "not on this platform",
    }
    facts = {
        "processor": f"{machine.cpu}, {machine.physical_cores} cores, {record['usable_cores']} of them usable",
        "memory": f"{format_bytes(machine.memory_bytes)}, {format_bytes(record['free_memory_bytes'])} free, "
        f"read at {bandwidth}",
        "system": f"{machine.os}, Python {machine.python}",
        **backends,
        **({"quantizer": record["quantizer"]} if record["quantizer"] else {}),
        **({"mlx search": record["mlx_search"]} if record["mlx_search"] else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "models": f"{record['models_folder']}, {format_bytes(record['free_disk_bytes'])} free",
        "default": record["default_recipe"],
    }
    if machine.busy:
        facts["note"] = f"other work keeps {machine.busy_cores:g} cores busy: measured speeds will be too low"
    return "\n".join(_wrapped(f"{name:<11} ", text) for name, text in facts.items())
