"""A bench report as CSV: a row for each form and test, with all that is needed to repeat it."""

from __future__ import annotations

import csv
import io
from typing import Any

from localq.measure.speed.results import BenchReport, FormResult, TestResult

_MACHINE = ("cpu", "physical_cores", "logical_cores", "memory_bytes", "os", "metal", "busy_cores", "python")
_LIBRARIES = ("localq", "mlx", "mlx-lm", "llama-cpp-python")
_SETTINGS = (
    "repetitions",
    "delay_seconds",
    "context_length",
    "threads",
    "kv_cache_type",
    "flash_attention",
    "batch_tokens",
)


def render_csv(report: BenchReport, command: str) -> str:
    """Header and rows in full precision, without a newline at the end. What is not known is an empty field.

    The columns are the same for every report. Several samples or warnings share a field, with `; ` between them.
    """
    rows = [_row(report, result, item, command) for result in report.results for item in result.tests]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().removesuffix("\n")


def _row(report: BenchReport, result: FormResult, item: TestResult, command: str) -> dict[str, Any]:
    machine, settings = report.machine, report.settings
    return {
        "model": result.form.model,
        "recipe": result.form.recipe,
        "artifact_bytes": result.form.artifact_bytes,
        "bits_per_weight": result.form.bits_per_weight,
        **_test_fields(item),
        "load_seconds": result.load_seconds,
        "cold_load_seconds": result.cold_load_seconds,
        "time_to_first_token_seconds": result.time_to_first_token_seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        **{name: getattr(settings, name) for name in _SETTINGS},
        "memory_bandwidth_bytes_per_second": report.memory_bandwidth_bytes_per_second,
        **{f"machine_{name}": getattr(machine, name) for name in _MACHINE},
        **{f"{name.replace('-', '_')}_version": machine.versions.get(name) for name in _LIBRARIES},
        "warnings": "; ".join(report.warnings),
        "started": report.started,
        "command": command,
    }


def _test_fields(item: TestResult) -> dict[str, Any]:
    rate = item.tokens_per_second
    low, high = rate.confidence_interval or (None, None)
    return {
        "test": item.test.name,
        "prompt_tokens": item.test.prompt_tokens,
        "generated_tokens": item.test.generated_tokens,
        "depth_tokens": item.test.depth_tokens,
        "tokens_per_second_median": rate.median,
        "tokens_per_second_stdev": rate.stdev,
        "tokens_per_second_low": low,
        "tokens_per_second_high": high,
        "tokens_per_second_samples": "; ".join(map(repr, rate.samples)),
        "limit_bytes_per_token": item.limit.bytes_per_token if item.limit else None,
        "limit_tokens_per_second": item.limit.tokens_per_second if item.limit else None,
        "limit_share": item.limit.share if item.limit else None,
        "joules_per_token": item.joules_per_token,
    }
