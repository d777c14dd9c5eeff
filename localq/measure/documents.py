"""Bench reports, their history, and eval reports, for people and as CSV. Measures nothing, prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localq.measure.data import Rate
from localq.measure.history import HistoryRun, history_runs
from localq.measure.reports import (
    BaselineQuality,
    BenchReport,
    EvalReport,
    FormQuality,
    FormSpeed,
    MemoryLimit,
    TestResult,
)
from localq.measure.tables import (
    Column,
    Document,
    Table,
    TableStyle,
    figure,
    format_time,
    labels,
    machine_facts,
    make_table,
    render,
    render_csv,
    table_lines,
    title,
    wrapped,
)
from localq.measure.verdict import nearness_lines, speed_lines
from localq.tables import format_bytes, format_coarsely, format_duration, format_range, format_spread

_LIBRARIES = ("localq", "mlx", "mlx-lm", "llama-cpp-python")
_SIZE = "bytes of all files of the format on disk"
_BITS = "8 x bytes of weights / number of weights"
_ENGINE_LIBRARIES = {"mlx": ("mlx", "mlx-lm"), "gguf": ("llama-cpp-python",)}
_Row = BaselineQuality | FormQuality


def render_report(report: BenchReport | EvalReport, style: TableStyle = "text", width: int | None = None) -> str:
    """A report without a newline at the end.

    `text` and `md` are rounded for reading; `text` leaves out columns for which `width` has no room. `csv` has full
    precision, the names of the JSON, and an empty field for what is not known.
    """
    if isinstance(report, BenchReport):
        document, records = bench_document(report), _bench_records(report)
    else:
        document, records = eval_document(report), _eval_records(report)
    return render_csv(records) if style == "csv" else render(document, style, width)


def bench_document(report: BenchReport, names: Mapping[str, str] | None = None) -> Document:
    """What a bench report shows; `names` has what formats are called."""
    names = names or labels(report.results)
    return Document(
        title=title(report.results, "speed") + (" (partial)" if report.partial else ""),
        tables=speed_tables(report, names),
        findings=tuple(speed_lines(report, names)),
        facts=(*machine_facts(report.machine), *speed_facts(report)),
        warnings=(*(["stopped before the last repetition"] if report.partial else []), *report.warnings),
        commands=tuple(filter(None, [report.command])),
    )


def speed_tables(report: BenchReport, names: Mapping[str, str]) -> tuple[Table, ...]:
    """A row for each format and test, then a row for each format; `names` has what formats are called."""
    level = report.results[0].tests[0].tokens_per_second.confidence_level
    tests: list[Column[tuple[FormSpeed, TestResult]]] = [
        Column("format", lambda row: names[row[0].name], is_text=True),
        Column("test", lambda row: row[1].test, _TEST, is_text=True),
        Column("t/s", lambda row: _rate(row[1].tokens_per_second), _RATE),
        Column(f"{level:.0%} interval" if level else "interval", lambda row: _interval(row[1]), _INTERVAL, 1),
        Column("of memory limit", lambda row: _limit(row[1]), _LIMIT, 2),
    ]
    forms: list[Column[FormSpeed]] = [
        Column("format", lambda form: names[form.name], is_text=True),
        Column("size", figure("artifact_bytes", format_bytes), _SIZE),
        Column("bits/weight", figure("bits_per_weight", ".2f"), _BITS, 2),
        Column("load", figure("load_seconds", format_duration), _LOAD, 1),
        Column("cold load", figure("cold_load_seconds", format_duration), "the same with no file in the cache", 4),
        Column("first token", figure("time_to_first_token_seconds", format_duration), _FIRST, 3),
        Column("peak memory", figure("peak_memory_bytes", format_bytes), "most memory of the process"),
    ]
    rows = [(result, item) for result in report.results for item in result.tests]
    return make_table("Speed", tests, rows), make_table("Size, loading and memory", forms, report.results)


_TEST = "ppN: process a prompt of N tokens; tgN: generate N tokens; @ dN: with N tokens in the cache before"
_RATE = "tokens per second, median ± standard deviation of the repetitions"
_INTERVAL = "confidence interval of the median: how far off it may be"
_LIMIT = "share of the speed at which reading the weights and the context from memory would take all the time"
_LOAD = "seconds until ready: import the library and load the files, from the operating system's cache"
_FIRST = "seconds from the start of the first prompt to the first token, median"


def speed_facts(report: BenchReport) -> list[tuple[str, str]]:
    """How speed was measured."""
    bandwidth = format_bytes(report.memory_bandwidth_bytes_per_second)
    facts = [
        ("measured", format_time(report.started)),
        ("speed", _settings(report)),
        ("memory limit", f"{bandwidth}/s, measured in the same run, / bytes that a token reads"),
    ]
    if "--shape" in report.command.split():
        facts.append(("weights", "random, in the shape of the model: size, speed and memory are as with its own"))
    return facts


def _settings(report: BenchReport) -> str:
    """How it was measured, in one line; sizes of prompts and replies stand in the tests' names."""
    settings = report.settings
    count, threads = settings.repetitions, settings.threads
    measured = len(report.results[0].tests[0].tokens_per_second.samples)
    times = f"{measured} of {count}" if report.partial else count
    cores = "a thread per available core (one for a very small model)"
    chosen = "as it chooses" if settings.flash_attention is None else "on" if settings.flash_attention else "off"
    parts = [
        f"{times} repetition{'s' * (count > 1)} by turns, each in a warm process of its own",
        f"context of {settings.context_length} tokens",
        f"keys and values in {settings.kv_cache_type or 'full'}",
        f"at most {settings.batch_tokens} prompt tokens in a pass",
        f"llama.cpp on {cores if threads is None else f'{threads} thread' + 's' * (threads > 1)}",
        f"flash attention {chosen}",
    ]
    if settings.delay_seconds:
        parts.append(f"a pause of {settings.delay_seconds:g} s before each measurement")
    return "; ".join(parts)


def _rate(rate: Rate) -> str:
    return format_spread(rate.median, rate.stdev)


def _interval(item: TestResult) -> str | None:
    ends = item.tokens_per_second.confidence_interval
    return None if ends is None else format_range(*ends)


def _limit(item: TestResult) -> str | None:
    limit = item.limit
    return None if limit is None else f"{limit.share:.0%} of {format_coarsely(limit.tokens_per_second)}"


def _bench_records(report: BenchReport) -> list[dict[str, object]]:
    """Rows of CSV, for each format and test."""
    return [_bench_record(report, result, item) for result in report.results for item in result.tests]


def _bench_record(report: BenchReport, result: FormSpeed, item: TestResult) -> dict[str, object]:
    """Several samples or warnings share a field, with `; ` between them."""
    machine, rate = report.machine, item.tokens_per_second
    low, high = rate.confidence_interval or (None, None)
    sizes = {"prompt_tokens", "generated_tokens", "depth_tokens"}
    of_tests = {"tests", "prompt_tokens_per_second", "generated_tokens_per_second"}
    limit = item.limit.model_dump() if item.limit else dict.fromkeys(MemoryLimit.model_fields)
    return {
        **result.model_dump(exclude=of_tests),
        **item.model_dump(exclude={"tokens_per_second", "limit"}),
        "tokens_per_second_median": rate.median,
        "tokens_per_second_stdev": rate.stdev,
        "tokens_per_second_low": low,
        "tokens_per_second_high": high,
        "tokens_per_second_level": rate.confidence_level,
        "tokens_per_second_samples": "; ".join(map(repr, rate.samples)),
        **{f"limit_{name}": value for name, value in limit.items()},
        **report.settings.model_dump(exclude={*sizes, "decode_prompt_tokens"}),
        "memory_bandwidth_bytes_per_second": report.memory_bandwidth_bytes_per_second,
        **{f"machine_{name}": value for name, value in machine.model_dump(exclude={"versions"}).items()},
        **{f"{name.replace('-', '_')}_version": machine.versions.get(name) for name in _LIBRARIES},
        "warnings": "; ".join(report.warnings),
        "partial": report.partial,
        "started": report.started.isoformat(),
        "command": report.command,
    }


def render_history(reports: Sequence[BenchReport], width: int | None = None) -> str:
    """A table for each format, machine and choice of settings, a row for each test and run."""
    parts = []
    for heading, runs in history_runs(reports).items():
        columns: list[Column[HistoryRun]] = [
            Column("test", lambda run: run.test.test, is_text=True),
            Column(
                "started (UTC)", lambda run: format_time(run.report.started).removesuffix(" UTC"), rank=1, is_text=True
            ),
            *map(_version, ("localq", *_ENGINE_LIBRARIES.get(runs[0].form.format, ()))),
            Column("t/s", lambda run: _rate(run.test.tokens_per_second)),
            Column("change", _change, is_text=True),
        ]
        parts.append("\n".join([*wrapped(heading, width), *table_lines(make_table(heading, columns, runs), width)]))
    return "\n\n".join(parts)


def _version(library: str) -> Column[HistoryRun]:
    return Column(library, lambda run: run.report.machine.versions.get(library), rank=2, is_text=True)


def _change(run: HistoryRun) -> str:
    """Against the run before, where it is shown; and what makes a run less sure."""
    change = "" if run.before is None else "~"
    if run.change is not None:
        change = f"{run.change:+.1%} {'faster' if run.change > 0 else 'slower'}"
    return f"{change} (machine busy)".strip() if run.report.machine.busy else change


def eval_document(report: EvalReport, names: Mapping[str, str] | None = None) -> Document:
    """What an eval report shows; `names` has what formats are called. The first table is how near each format is."""
    names = names or labels(eval_rows(report))
    shown = {**names, **{name: f"{names[name]} ({role})" for name, role in report.roles.items()}}
    label: Column[_Row] = Column("format", lambda row: shown[row.name], is_text=True)
    tables = {"Quality": _QUALITY, "Size and cost": _cost_columns(report.reference.artifact_bytes)}
    return Document(
        title=title([report.reference, *report.results], "quality"),
        tables=tuple(make_table(caption, [label, *columns], eval_rows(report)) for caption, columns in tables.items()),
        findings=tuple(nearness_lines(report, names)),
        facts=(*machine_facts(report.machine), *_eval_facts(report, names)),
        warnings=report.warnings,
        commands=tuple(filter(None, [report.command])),
    )


def _perplexity(row: _Row) -> str | None:
    form = ".4f" if row.perplexity < 100 else ".1f"
    return figure("perplexity", form, "perplexity", form)(row)


_KL = "mean Kullback-Leibler divergence from the baseline in nats ± standard error"
_SAME_TOP = "share of positions with the same most likely token ± standard error"
_PERPLEXITY = "exp(mean of -ln probability of the right token) ± standard error"
_LN = "ln(perplexity / the baseline's) ± standard error"
_CHANGE = "√(mean squared change of the right token's probability) ± standard error"
_INDICATIVE = "seconds, roughly; `localq bench` measures speed properly"
_QUALITY: Sequence[Column[_Row]] = (
    Column("mean KL", figure("mean_kl_divergence", ".3g", "kl_divergence", ".2g"), _KL),
    Column("99% KL", figure("p99_kl_divergence", ".3g"), "one position in a hundred has more", 4),
    Column("largest KL", figure("max_kl_divergence", ".3g"), "of all positions", 6),
    Column("same top", figure("same_top_fraction", ".2%", "same_top", ".2%"), _SAME_TOP, 1),
    Column("perplexity", _perplexity, _PERPLEXITY, 2),
    Column("ln ratio", figure("log_perplexity_ratio", "+z.4f", "log_perplexity_ratio", ".4f"), _LN, 3),
    Column("RMS Δp", figure("rms_probability_change", ".2%", "rms_probability_change", ".2%"), _CHANGE, 5),
)


def _cost_columns(baseline_bytes: int) -> Sequence[Column[_Row]]:
    return [
        Column("size", figure("artifact_bytes", format_bytes), _SIZE),
        Column(
            "of baseline", lambda row: f"{row.artifact_bytes / baseline_bytes:.1%}", "size / the baseline's size", 1
        ),
        Column("bits/weight", figure("bits_per_weight", ".2f"), _BITS, 3),
        Column("read/token", figure("bytes_read_per_token", format_bytes), "bytes of weights", 2),
        Column("prompt token", figure("prompt_seconds_per_token", format_duration), _INDICATIVE, 4),
        Column("generated token", figure("generated_seconds_per_token", format_duration), _INDICATIVE, 5),
        Column("peak memory", figure("peak_memory_bytes", format_bytes), "of the process that evaluates", 6),
    ]


def _eval_facts(report: EvalReport, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """What was evaluated and how."""
    used, floor, baseline = report.settings, report.noise_floor, report.reference
    begin = "" if used.begin_token_id is None else f" that begin with token {used.begin_token_id}"
    threads = "a thread per available core" if used.threads is None else f"{used.threads} threads"
    compared = f"compared with {names[baseline.name]} ({format_bytes(baseline.artifact_bytes)}) on the same tokens"
    text = f"{used.text} (sha256 {used.text_sha256[:16]}...); {used.windows} windows of {used.window_tokens} tokens"
    scored = f"scored from position {used.first_scored} on: {used.positions:,} positions"
    facts = [
        ("quality", f"{compared}; llama.cpp on {threads}; measured {format_time(report.started)}"),
        ("text", f"{text}{begin}; {scored}"),
    ]
    if floor is not None:
        said = f"{names[floor.name]} is not quantized: its mean KL of {floor.mean_kl_divergence:.2g} is the engines'"
        facts.append(("noise floor", f"{said} arithmetic; differences across engines that are not larger mean nothing"))
    return facts


def eval_rows(report: EvalReport) -> list[_Row]:
    """The baseline, the noise floor, the formats, each once."""
    floor = report.noise_floor
    others = [result for result in report.results if floor is None or result.name != floor.name]
    return [report.reference, *([floor] if floor else []), *others]


def _eval_records(report: EvalReport) -> list[dict[str, object]]:
    """Rows of CSV: the columns of the JSON, those of a format, which has all that the baseline has."""
    floor = [("noise_floor", report.noise_floor)] if report.noise_floor else []
    rows = [("reference", report.reference), *floor, *(("form", result) for result in report.results)]
    facts = {"started": report.started.isoformat(), "cpu": report.machine.cpu, "os": report.machine.os}
    shared = {**report.settings.model_dump(mode="json"), **facts, "command": report.command}
    empty = dict.fromkeys(FormQuality.model_fields)
    return [{"role": role, **empty, **row.model_dump(mode="json"), **shared} for role, row in rows]
