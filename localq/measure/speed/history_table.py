"""How the speed of forms changed over time and versions, as plain text. Reads no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from localq.measure.speed.history import Entry, entry_name, entry_time
from localq.measure.speed.intervals import FEWEST_FOR_95_PERCENT, NEGLIGIBLE_RATIO
from localq.measure.speed.results import BenchSettings
from localq.tables import format_bytes, format_spread, format_table

_ENGINE_LIBRARIES = {"mlx": ("mlx", "mlx-lm"), "gguf": ("llama-cpp-python",)}

# What was chosen is no difference between versions: runs with other choices are kept apart. The context length is none
# of them: by default it follows from the tests that were measured along.
_CHOICES = ("threads", "kv_cache_type", "flash_attention", "batch_tokens")

_GIB = 1 << 30


def render_history(entries: Sequence[Entry]) -> str:
    """A table for each form and machine, a row for each test and run; without a newline at the end.

    The last column compares with the run before: `+4.0% faster` where the 95% intervals of the medians lie apart by
    more than what is too small to matter, else `~`; also for runs of few repetitions, whose intervals are less sure.
    """
    in_order = sorted(entries, key=entry_time)
    groups = _grouped(in_order, _kind)
    tables = [f"{_heading(runs[-1])}\n{_table(runs)}" for runs in sorted(groups, key=lambda runs: entry_name(runs[0]))]
    return "\n\n".join(tables)


def _grouped(entries: Sequence[Entry], key: Callable[[Entry], object]) -> list[list[Entry]]:
    """Entries with the same key, in the order of their first ones."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return list(groups.values())


def _kind(entry: Entry) -> tuple[object, ...]:
    """What must be equal for two runs of a test to be compared."""
    machine, settings = entry["machine"], entry["settings"]
    # What an operating system calls all of the memory changes a little with its kernel.
    hardware = machine["cpu"], machine["physical_cores"], round(machine["memory_bytes"] / _GIB)
    return entry_name(entry), *hardware, *(repr(settings.get(name)) for name in _CHOICES)


def _heading(entry: Entry) -> str:
    machine, settings, defaults = entry["machine"], entry["settings"], asdict(BenchSettings())
    hardware = f"{machine['cpu']}, {machine['physical_cores']} cores, {format_bytes(machine['memory_bytes'])}"
    chosen = [f"{name} {settings[name]}" for name in _CHOICES if name in settings and settings[name] != defaults[name]]
    return "; ".join([entry_name(entry), hardware, *chosen])


def _table(runs: Sequence[Entry]) -> str:
    libraries = ("localq", *_ENGINE_LIBRARIES.get(runs[0]["recipe"].partition("-")[0], ()))
    header = ["test", "started (UTC)", *libraries, "t/s", "change"]
    rows = [
        [
            run["test"],
            entry_time(run).strftime("%Y-%m-%d %H:%M"),
            *(run["versions"].get(name, "-") for name in libraries),
            format_spread(run["tokens_per_second"]["median"], run["tokens_per_second"]["stdev"]),
            _change(before, run) if before else "",
        ]
        for same_test in _grouped(runs, lambda run: run["test"])
        for before, run in zip([None, *same_test], same_test, strict=False)
    ]
    return format_table(header, rows, len(libraries) + 2, ends_with_text=True)


def _change(before: Entry, run: Entry) -> str:
    first, second = before["tokens_per_second"], run["tokens_per_second"]
    first_ends, second_ends = first["confidence_interval"], second["confidence_interval"]
    samples = min(len(first["samples"]), len(second["samples"]))
    if not first_ends or not second_ends or samples < FEWEST_FOR_95_PERCENT:
        return "~"
    if first_ends[1] * NEGLIGIBLE_RATIO < second_ends[0]:
        return f"{second['median'] / first['median'] - 1:+.1%} faster"
    if second_ends[1] * NEGLIGIBLE_RATIO < first_ends[0]:
        return f"{second['median'] / first['median'] - 1:+.1%} slower"
    return "~"
