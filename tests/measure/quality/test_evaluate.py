"""`localq eval` on real small models: its figures against llama-perplexity's, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from localq.demo.questions import read_held_out_text
from localq.errors import EngineError, LocalqError, OptionError, StoreError
from localq.measure.forms import Form, find_forms
from localq.measure.quality import worker as quality_worker
from localq.measure.quality.evaluate import evaluate
from localq.measure.quality.reference_logits import MOST_EXACT_TOKENS
from localq.measure.quality.results import EvalReport, EvalResult, EvalSettings
from localq.measure.quality.run import EvalStep, RunPlan, quality_run
from localq.measure.quality.windows import WindowSettings
from localq.measure.quality.worker import POSITION_FIELDS, QualityWorker
from localq.store.layout import MANIFEST_NAME

pytest.importorskip("mlx_lm")  # not on every platform

_CHECKOUT = Path(__file__).parents[3]
_QUICK = EvalSettings(window_tokens=64, most_windows=2)

# What llama-perplexity, built from the llama.cpp of llama-cpp-python 0.3.36, prints for the toys' held-out text with
# gguf-bf16 as the base: perplexity, base's perplexity, ln of their ratio, mean KL divergence, RMS delta-p, same top p.
# Made with: python benchmarks/eval_against_llama_perplexity.py --llama-perplexity LLAMA_PERPLEXITY --threads 1
#   --reference toy-llama:gguf-bf16 --text localq/demo/heldout.txt toy-llama:gguf-q8_0 toy-llama:gguf-q4_k_m ...
_LLAMA_PERPLEXITY = {
    "toy-llama:gguf-q8_0": (1.447169, 1.447238, -0.000048, 0.000022, 0.00170, 0.99641),
    "toy-llama:gguf-q4_k_m": (1.448960, 1.447238, 0.001189, 0.000438, 0.00870, 0.98399),
    "toy-llama:gguf-q4_0": (1.447489, 1.447238, 0.000173, 0.000719, 0.01055, 0.98235),
    "toy-phi:gguf-q8_0": (1.448124, 1.447952, 0.000118, 0.000017, 0.00131, 0.99679),
    "toy-phi:gguf-q4_k_m": (1.447369, 1.447952, -0.000403, 0.000427, 0.00774, 0.98289),
    "toy-phi:gguf-q4_0": (1.449464, 1.447952, 0.001044, 0.000625, 0.00866, 0.98467),
}
_RELATIVE = (1e-3, 1e-3, 1e-3, 5e-3, 5e-3, 1e-3)
_ROUNDING = (5e-7, 5e-7, 5e-6, 5e-7, 5e-6, 5e-6)  # of what it prints, and of its sums in single precision
_SLACK = 1 if platform.machine() == "x86_64" else 20
"""Other processors, and Metal, round otherwise what quantized weights are multiplied by."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder."""
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def steps_and_report(toys: Path) -> tuple[list[EvalStep], EvalReport]:
    """Both engines, 8 and 4 bits, against float32."""
    steps: list[EvalStep] = []

    def look(step: EvalStep) -> None:
        assert [path for path in toys.iterdir() if not path.is_dir()] == [], "the reference's rows are in no file"
        steps.append(step)

    names = [f"toy-llama:{recipe}" for recipe in ("gguf-q8_0", "mlx-8bit", "gguf-q4_k_m", "mlx-4bit")]
    return steps, evaluate(names, EvalSettings(most_windows=3), toys, on_step=look)


@pytest.fixture(scope="module")
def results(steps_and_report: tuple[list[EvalStep], EvalReport]) -> dict[str, EvalResult]:
    return {result.form.recipe: result for result in steps_and_report[1].results}


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if quality_worker.__name__ in child.cmdline()]


@pytest.mark.parametrize("toy", ["toy-llama", "toy-phi"])
def test_figures_are_those_of_llama_perplexity(toy: str, toys: Path) -> None:
    names = [name for name in _LLAMA_PERPLEXITY if name.startswith(toy)]
    report = evaluate(names, EvalSettings(reference=f"{toy}:gguf-bf16", threads=1), toys)
    assert [result.form.name for result in report.results] == names
    assert report.noise_floor is None
    for result in report.results:
        found = result.divergence
        values = (
            found.perplexity,
            found.reference_perplexity,
            found.log_perplexity_ratio,
            found.mean_kl_divergence,
            found.rms_probability_change,
            found.same_top_fraction,
        )
        expected = zip(_LLAMA_PERPLEXITY[result.form.name], _RELATIVE, _ROUNDING, strict=True)
        for value, (printed, relative, rounding) in zip(values, expected, strict=True):
            assert value == pytest.approx(printed, rel=_SLACK * relative, abs=_SLACK * rounding), result.form.name


def test_both_engines_foretell_the_same_without_quantization(
    steps_and_report: tuple[list[EvalStep], EvalReport],
) -> None:
    floor = steps_and_report[1].noise_floor
    assert floor is not None
    assert floor.form.name == "toy-llama:mlx-f32"
    assert floor.divergence.mean_kl_divergence <= 1e-6
    assert floor.divergence.same_top_fraction >= 0.999
    assert not [warning for warning in steps_and_report[1].warnings if "engines" in warning]


def test_the_reference_is_the_float32_gguf_form_of_a_small_model(
    steps_and_report: tuple[list[EvalStep], EvalReport],
) -> None:
    report = steps_and_report[1]
    assert report.reference.form.name == "toy-llama:gguf-f32"
    perplexities = {result.divergence.reference_perplexity for result in report.results}
    assert perplexities == {report.reference.perplexity.value}


def test_fewer_bits_are_farther_from_the_reference_and_it_is_said(
    steps_and_report: tuple[list[EvalStep], EvalReport], results: dict[str, EvalResult]
) -> None:
    for eight, four in (("gguf-q8_0", "gguf-q4_k_m"), ("mlx-8bit", "mlx-4bit")):
        near, far = results[eight].divergence, results[four].divergence
        assert near.mean_kl_divergence < far.mean_kl_divergence / 5
        assert near.same_top_fraction > far.same_top_fraction
        assert near.rms_probability_change < far.rms_probability_change
        names = f"toy-llama:{eight}", f"toy-llama:{four}"
        pairs = [item for item in steps_and_report[1].comparisons if (item.nearer, item.farther) == names]
        assert [item.differs for item in pairs] == [True]
        difference = far.mean_kl_divergence - near.mean_kl_divergence
        assert pairs[0].difference.estimate == pytest.approx(difference)


def test_what_it_cost_before_and_after_is_told(steps_and_report: tuple[list[EvalStep], EvalReport]) -> None:
    report = steps_and_report[1]
    for result in (report.reference, *report.results):
        assert 0 < result.cost.prompt_seconds_per_token < 1
        assert result.cost.generated_seconds_per_token is not None
        assert 0 < result.cost.generated_seconds_per_token < 1
        assert result.cost.load_seconds > 0
        assert result.cost.peak_memory_bytes > result.form.artifact_bytes
        assert result.bytes_read_per_token is not None
        assert 0.5 < result.bytes_read_per_token / result.form.artifact_bytes < 1.2
    assert all(result.form.artifact_bytes < report.reference.form.artifact_bytes / 2 for result in report.results)


def test_the_reference_comes_first_then_the_noise_floor_then_the_forms(
    steps_and_report: tuple[list[EvalStep], EvalReport],
) -> None:
    steps, report = steps_and_report
    first = [step for step in steps if step.window == 1]
    recipes = ["gguf-f32", "mlx-f32", *(result.form.recipe for result in report.results)]
    assert [step.form for step in first] == [f"toy-llama:{recipe}" for recipe in recipes]
    assert [(step.number, step.forms) for step in first] == [(number, 6) for number in range(1, 7)]
    assert [step.window for step in steps] == list(range(1, report.text.windows + 1)) * 6


def test_the_json_has_the_keys_of_the_contract(steps_and_report: tuple[list[EvalStep], EvalReport]) -> None:
    value = json.loads(json.dumps(steps_and_report[1].to_json()))
    assert {"machine", "settings", "reference", "noise_floor", "results", "comparisons", "warnings"} <= set(value)
    contract = {
        *("model", "recipe", "positions", "mean_kl_divergence", "kl_divergence_standard_error", "p99_kl_divergence"),
        *("same_top_fraction", "perplexity", "reference_perplexity", "bits_per_weight", "artifact_bytes"),
    }
    for result in (value["noise_floor"], *value["results"]):
        assert contract <= set(result)
        assert result["positions"] == value["settings"]["positions"] == value["settings"]["windows"] * 255
    assert {"model", "recipe", "perplexity", "bits_per_weight", "artifact_bytes"} <= set(value["reference"])
    assert value["settings"]["text"] == "localq/demo/heldout.txt"
    assert value["settings"]["window_tokens"] == 512 and value["settings"]["first_scored"] == 256


def test_no_process_is_left_over(steps_and_report: tuple[list[EvalStep], EvalReport]) -> None:
    assert steps_and_report
    assert workers() == []


def test_what_is_asked_for_is_not_computed_twice_as_the_noise_floor(toys: Path) -> None:
    steps: list[EvalStep] = []
    report = evaluate(["toy-llama:mlx-f32"], _QUICK, toys, on_step=steps.append)
    assert report.noise_floor == report.results[0]
    assert [step.form for step in steps if step.window == 1] == ["toy-llama:gguf-f32", "toy-llama:mlx-f32"]


def test_forms_whose_tokens_differ_are_refused(toys: Path) -> None:
    settings = dataclasses.replace(_QUICK, reference="toy-llama:gguf-f32")
    with pytest.raises(OptionError, match="tokenize localq/demo/heldout.txt differently: token 0 of window 1 is 507"):
        evaluate(["toy-phi:gguf-q8_0"], settings, toys)


def test_forms_made_elsewhere_are_compared_with_a_reference_that_is_named(toys: Path, tmp_path: Path) -> None:
    artifact, mlx = find_forms(["toy-llama:gguf-q4_k_m", "toy-llama:mlx-4bit"], toys)
    file = shutil.copy(next(artifact.path.glob("*.gguf")), tmp_path / "foreign.gguf")
    folder = shutil.copytree(mlx.path, tmp_path / "foreign-mlx")
    (folder / MANIFEST_NAME).unlink()
    text = tmp_path / "text.txt"
    text.write_text(read_held_out_text(), encoding="utf-8")
    settings = dataclasses.replace(_QUICK, text_file=text, reference="toy-llama:gguf-f32", noise_floor=False)
    report = evaluate([str(file), str(folder), artifact.name], settings, toys)
    foreign, foreign_mlx, own = report.results
    assert foreign.divergence == own.divergence  # its own vocabulary gives the same tokens
    assert (foreign.form.bits_per_weight, foreign_mlx.form.recipe) == (None, "mlx")
    assert foreign_mlx.divergence.mean_kl_divergence > 0


def test_figures_do_not_depend_on_how_large_the_pieces_are(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window's logits are never together: what is packed and compared at once is a piece."""
    (reference, form) = find_forms(["toy-llama:gguf-f32", "toy-llama:gguf-q4_k_m"], toys)
    tokens = [507, *range(3, 100)]
    found = []
    for piece_rows in (1000, 7):
        monkeypatch.setattr("localq.engines.base.CHUNK_LOGITS_BYTES", piece_rows * 4 * 512)
        sizes: list[int] = []
        pack, compare = quality_worker.pack_rows, quality_worker.compare_rows

        def packed(logits: np.ndarray, sizes: list[int] = sizes, pack: Any = pack) -> Any:
            sizes.append(len(logits))
            return pack(logits)

        def compared(rows: Any, logits: Any, right: Any, sizes: list[int] = sizes, compare: Any = compare) -> Any:
            sizes.append(max(len(rows), len(logits)))
            return compare(rows, logits, right)

        with monkeypatch.context() as patched, (toys / "rows").open("w+b") as stream:
            patched.setattr(quality_worker, "pack_rows", packed)
            patched.setattr(quality_worker, "compare_rows", compared)
            recorded = run_worker(reference, stream.fileno(), "record", tokens)
            found.append((recorded, run_worker(form, stream.fileno(), "compare", tokens)))
        assert max(sizes) == min(piece_rows, len(tokens) - 11)
        assert sum(sizes) == 2 * (len(tokens) - 11)
    (toys / "rows").unlink()
    (whole_recorded, whole), (recorded, parts) = found
    assert recorded["negative_log_likelihood"] == pytest.approx(whole_recorded["negative_log_likelihood"])
    for name in POSITION_FIELDS:
        assert parts[name] == pytest.approx(whole[name], rel=1e-9, abs=1e-12)


def run_worker(form: Form, descriptor: int, command: str, tokens: list[int]) -> dict[str, Any]:
    commands = QualityWorker().commands
    loaded = commands["load"](str(form.path), 128, 1, descriptor, "folder")
    assert loaded["vocabulary_size"] == 512 <= MOST_EXACT_TOKENS
    return commands[command](tokens, 10, 0)


def test_a_disk_without_room_is_found_out_before_anything_is_computed(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[EvalStep] = []
    row_bytes = 8 * 512 + 24
    free_bytes = (32 << 20) + 5 * 255 * row_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, free_bytes))
    with pytest.raises(StoreError, match=f"takes 12.6. MB for 12 windows; {toys} has 5.25 MB free") as caught:
        evaluate(["toy-llama:gguf-q8_0"], EvalSettings(), toys, on_step=steps.append)
    assert "--windows 5" in caught.value.hint and "--models-dir" in caught.value.hint
    assert steps == []
    evaluate(["toy-llama:gguf-q8_0"], EvalSettings(most_windows=5), toys)


def test_a_process_that_is_killed_is_named_with_its_form(toys: Path) -> None:
    def kill(step: EvalStep) -> None:
        if (step.form, step.window) == ("toy-llama:gguf-q8_0", 2):
            (worker,) = workers()
            worker.kill()

    with pytest.raises(EngineError, match="toy-llama:gguf-q8_0 was killed by SIGKILL"):
        evaluate(["toy-llama:gguf-q8_0"], _QUICK, toys, on_step=kill)
    assert workers() == []


def test_a_vocabulary_of_another_size_is_refused(toys: Path) -> None:
    llama, phi = find_forms(["toy-llama:gguf-q8_0", "toy-phi:gguf-q8_0"], toys)
    plan = RunPlan([[1, 2, 3, 4]], WindowSettings(4), 1, 2, lambda step: None)
    with quality_run(plan, toys) as run:
        run.record(llama)
        with pytest.raises(OptionError, match="toy-phi:gguf-q8_0 gives 640 logits, the reference 512"):
            run.compare(phi)


def test_a_model_that_is_no_toy_needs_a_text(checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no text") as caught:
        evaluate([f"{checkpoint_folder}:gguf-q8_0"], EvalSettings(), tmp_path)
    assert "--text" in caught.value.hint and "WikiText-2" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_models_folder_that_may_not_be_written_is_no_hindrance(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_forms(["toy-llama:gguf-q8_0", "toy-llama:gguf-f32"], toys)
    open_file = tempfile.TemporaryFile

    def refusing(*arguments: Any, dir: Path | None = None, **options: Any) -> Any:
        if dir == toys:
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(*arguments, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    report = evaluate(["toy-llama:gguf-q8_0"], _QUICK, toys)
    assert report.results[0].divergence.mean_kl_divergence > 0


def test_windows_fit_the_longest_context(toys: Path) -> None:
    with pytest.raises(OptionError, match="--window is 1025; the longest context of these forms is 1024"):
        evaluate(["toy-phi:gguf-q8_0"], EvalSettings(window_tokens=1025), toys)
    assert EvalSettings().windows(None).window_tokens == 512
    assert EvalSettings().windows(300).window_tokens == 300
    assert EvalSettings().windows(300).first == 150


@pytest.mark.parametrize("settings", [{"window_tokens": 1}, {"most_windows": 0}, {"first_scored": 511}, {"threads": 0}])
def test_settings_that_evaluate_nothing_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(settings.values()))}"):
        EvalSettings(**settings)


def test_an_error_in_a_worker_comes_over_with_its_hint(toys: Path) -> None:
    (form,) = find_forms(["toy-llama:gguf-q8_0"], toys)
    plan = RunPlan([[1, 2, 999]], WindowSettings(3), 1, 1, lambda step: None)
    with quality_run(plan, toys) as run, pytest.raises(LocalqError, match="toy-llama:gguf-q8_0: token id 999"):
        run.record(form)


def test_ctrl_c_leaves_no_file_and_no_process(toys: Path, tmp_path: Path) -> None:
    find_forms(["toy-llama:gguf-q8_0", "toy-llama:gguf-f32"], toys)
    text = tmp_path / "text.txt"
    text.write_text(read_held_out_text() * 60, encoding="utf-8")
    before = sorted(toys.iterdir())
    command = [sys.executable, "-m", "localq", "eval", "toy-llama:gguf-q8_0", "--text", text, "--windows", "10000"]
    evaluation = subprocess.Popen(
        [*command, "--models-dir", toys], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_CHECKOUT
    )
    assert evaluation.stderr is not None
    while "windows" not in (line := evaluation.stderr.readline()):
        assert line, "it ended by itself"
    children = psutil.Process(evaluation.pid).children()
    evaluation.send_signal(signal.SIGINT)
    output, errors = evaluation.communicate(timeout=30)
    assert (evaluation.returncode, output) == (130, "")
    assert "Traceback" not in errors
    deadline = time.monotonic() + 5
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(child.is_running() for child in children)
    assert sorted(toys.iterdir()) == before
