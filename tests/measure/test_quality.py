"""`localq eval` on real small models: its figures against llama-perplexity's, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from localq.demo.questions import read_held_out_text
from localq.errors import EngineError, LocalqError, OptionError, StoreError
from localq.measure import worker
from localq.measure.baseline_logits import compare, record, unnamed_file
from localq.measure.forms import find_forms
from localq.measure.quality import EvalSettings, QualityRun, evaluate
from localq.measure.reports import Divergence, EvalReport, FormQuality
from localq.measure.worker import Step
from localq.model import open_form
from localq.options import LoadOptions
from localq.store.layout import MANIFEST_NAME

pytest.importorskip("mlx_lm")  # not on every platform

_CHECKOUT = Path(__file__).parents[2]
_QUICK = EvalSettings(window_tokens=64, most_windows=2)

# What llama-perplexity, built from the llama.cpp of llama-cpp-python 0.3.36, prints for the toys' held-out text with
# gguf-bf16 as the base: perplexity, base's perplexity, ln of their ratio, mean KL divergence, RMS delta-p, same top p.
# Made with: python benchmarks/eval_against_llama_perplexity.py --llama-perplexity LLAMA_PERPLEXITY --threads 1
#   --baseline toy-llama:gguf-bf16 --text localq/demo/heldout.txt toy-llama:gguf-q8_0 toy-llama:gguf-q4_k_m ...
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
"""Other processors, and Metal, round differently what quantized weights are multiplied by."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder."""
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def steps_and_report(toys: Path) -> tuple[list[Step], EvalReport]:
    """Both engines, 8 and 4 bits, against float32."""
    steps: list[Step] = []

    def look(step: Step) -> None:
        assert [path for path in toys.iterdir() if not path.is_dir()] == [], "the temporary file has no name"
        steps.append(step)

    names = [f"toy-llama:{recipe}" for recipe in ("gguf-q8_0", "mlx-8bit", "gguf-q4_k_m", "mlx-4bit")]
    return steps, evaluate(names, EvalSettings(most_windows=3), toys, on_step=look)


@pytest.fixture(scope="module")
def results(steps_and_report: tuple[list[Step], EvalReport]) -> dict[str, FormQuality]:
    return {result.recipe: result for result in steps_and_report[1].results}


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if worker.__name__ in " ".join(child.cmdline())]


@pytest.mark.parametrize("toy", ["toy-llama", "toy-phi"])
def test_figures_are_those_of_llama_perplexity(toy: str, toys: Path) -> None:
    names = [name for name in _LLAMA_PERPLEXITY if name.startswith(toy)]
    report = evaluate(names, EvalSettings(baseline=f"{toy}:gguf-bf16", threads=1), toys)
    assert [result.name for result in report.results] == names
    assert report.noise_floor is None
    for result in report.results:
        values = (
            result.perplexity,
            result.reference_perplexity,
            result.log_perplexity_ratio,
            result.mean_kl_divergence,
            result.rms_probability_change,
            result.same_top_fraction,
        )
        expected = zip(_LLAMA_PERPLEXITY[result.name], _RELATIVE, _ROUNDING, strict=True)
        for value, (printed, relative, rounding) in zip(values, expected, strict=True):
            assert value == pytest.approx(printed, rel=_SLACK * relative, abs=_SLACK * rounding), result.name


def test_both_engines_predict_the_same_without_quantization(
    steps_and_report: tuple[list[Step], EvalReport],
) -> None:
    floor = steps_and_report[1].noise_floor
    assert floor is not None
    assert floor.name == "toy-llama:mlx-f32"
    assert floor.mean_kl_divergence <= 1e-6
    assert floor.same_top_fraction >= 0.999
    assert not [warning for warning in steps_and_report[1].warnings if "engines" in warning]


def test_fewer_bits_are_farther_from_the_baseline(
    steps_and_report: tuple[list[Step], EvalReport], results: dict[str, FormQuality]
) -> None:
    for eight, four in (("gguf-q8_0", "gguf-q4_k_m"), ("mlx-8bit", "mlx-4bit")):
        near, far = results[eight], results[four]
        assert near.mean_kl_divergence < far.mean_kl_divergence / 5
        assert near.same_top_fraction > far.same_top_fraction
        assert near.rms_probability_change < far.rms_probability_change
        names = f"toy-llama:{eight}", f"toy-llama:{four}"
        pairs = [item for item in steps_and_report[1].comparisons if (item.nearer, item.farther) == names]
        assert [item.differs for item in pairs] == [True]
        difference = far.mean_kl_divergence - near.mean_kl_divergence
        assert pairs[0].difference.estimate == pytest.approx(difference)


def test_the_report_has_the_cost_before_and_after(steps_and_report: tuple[list[Step], EvalReport]) -> None:
    report = steps_and_report[1]
    for result in (report.reference, *report.results):
        assert 0 < result.prompt_seconds_per_token < 1
        assert result.generated_seconds_per_token is not None
        assert 0 < result.generated_seconds_per_token < 1
        assert result.load_seconds > 0
        assert result.peak_memory_bytes > result.artifact_bytes
        assert result.bytes_read_per_token is not None
        assert 0.5 < result.bytes_read_per_token / result.artifact_bytes < 1.2
    assert all(result.artifact_bytes < report.reference.artifact_bytes / 2 for result in report.results)


def test_the_baseline_comes_first_then_the_noise_floor_then_the_forms(
    steps_and_report: tuple[list[Step], EvalReport],
) -> None:
    steps, report = steps_and_report
    count = report.settings.windows
    assert {result.reference_perplexity for result in report.results} == {report.reference.perplexity}
    names = ["toy-llama:gguf-f32", "toy-llama:mlx-f32", *(result.name for result in report.results)]
    expected = [(name, f"window {number} of {count}") for name in names for number in range(1, count + 1)]
    assert [(step.part, step.what) for step in steps] == expected
    assert workers() == []  # none is left
    assert [(step.number, step.of) for step in steps] == [(number + 1, 6 * count) for number in range(6 * count)]


def test_the_json_has_the_keys_of_the_contract(steps_and_report: tuple[list[Step], EvalReport]) -> None:
    value = steps_and_report[1].model_dump(mode="json")
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


def test_a_form_that_is_also_the_noise_floor_is_computed_once(toys: Path) -> None:
    steps: list[Step] = []
    report = evaluate(["toy-llama:mlx-f32"], _QUICK, toys, on_step=steps.append)
    assert report.noise_floor == report.results[0]
    assert list(dict.fromkeys(step.part for step in steps)) == ["toy-llama:gguf-f32", "toy-llama:mlx-f32"]


def test_forms_whose_tokens_differ_are_refused(toys: Path) -> None:
    settings = dataclasses.replace(_QUICK, baseline="toy-llama:gguf-f32")
    with pytest.raises(OptionError, match="tokenize localq/demo/heldout.txt differently: token 0 of window 1 is 507"):
        evaluate(["toy-phi:gguf-q8_0"], settings, toys)


def test_forms_made_elsewhere_are_compared_with_a_baseline_that_is_named(toys: Path, tmp_path: Path) -> None:
    artifact, mlx = find_forms(["toy-llama:gguf-q4_k_m", "toy-llama:mlx-4bit"], toys)
    file = shutil.copy(next(artifact.path.glob("*.gguf")), tmp_path / "foreign.gguf")
    folder = shutil.copytree(mlx.path, tmp_path / "foreign-mlx")
    (folder / MANIFEST_NAME).unlink()
    text = tmp_path / "text.txt"
    text.write_text(read_held_out_text(), encoding="utf-8")
    settings = dataclasses.replace(_QUICK, text_file=text, baseline="toy-llama:gguf-f32", noise_floor=False)
    report = evaluate([str(file), str(folder), artifact.name], settings, toys)
    foreign, foreign_mlx, own = report.results
    same = {name: getattr(own, name) for name in Divergence.model_fields}
    assert {name: getattr(foreign, name) for name in same} == same  # its own vocabulary gives the same tokens
    assert (foreign.bits_per_weight, foreign_mlx.recipe) == (None, "mlx")
    assert foreign_mlx.mean_kl_divergence > 0


def test_figures_do_not_depend_on_how_large_the_chunks_are(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits of a window are never in memory together."""
    forms = find_forms(["toy-llama:gguf-f32", "toy-llama:gguf-q4_k_m"], toys)
    tokens = [507, *range(3, 100)]
    found = []
    for chunk_rows in (1000, 7):
        monkeypatch.setattr("localq.engines.base.CHUNK_LOGITS_BYTES", chunk_rows * 4 * 512)
        with unnamed_file(tmp_path) as file:
            for form, function in zip(forms, (record, compare), strict=True):
                with open_form(form.path, LoadOptions(128, 1)) as model:
                    answer = function(model, tokens, 10, 0, (file.descriptor, file.folder))
                assert len(answer.pop("engine_seconds")) == math.ceil(88 / chunk_rows)
                found.append(answer)
    (recorded, compared), others = found[:2], found[2:]
    for whole, parts in zip((recorded, compared), others, strict=True):
        assert whole.keys() == parts.keys()
        for name, values in whole.items():
            assert len(values) == 87
            assert parts[name] == pytest.approx(values, rel=1e-9, abs=1e-12)


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Step] = []
    free_bytes = (32 << 20) + 5 * 255 * 4 * 512
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, free_bytes))
    with pytest.raises(StoreError, match=f"take 6.27 MB for 12 windows; {toys} has 2.61 MB free") as caught:
        evaluate(["toy-llama:gguf-q8_0"], EvalSettings(), toys, on_step=steps.append)
    assert "--windows 5" in caught.value.hint and "--models-dir" in caught.value.hint
    assert steps == []
    evaluate(["toy-llama:gguf-q8_0"], EvalSettings(most_windows=5), toys)


def test_a_process_that_is_killed_is_named_with_its_form(toys: Path) -> None:
    def kill(step: Step) -> None:
        if (step.part, step.what) == ("toy-llama:gguf-q8_0", "window 2 of 2"):
            (process,) = workers()
            process.kill()

    with pytest.raises(EngineError, match="toy-llama:gguf-q8_0 was killed by SIGKILL"):
        evaluate(["toy-llama:gguf-q8_0"], _QUICK, toys, on_step=kill)
    assert workers() == []


@contextmanager
def quality_run(tokens: list[int], folder: Path) -> Iterator[QualityRun]:
    """Of a single window."""
    with unnamed_file(folder) as file:
        settings = EvalSettings(window_tokens=len(tokens), threads=1)
        yield QualityRun([tokens], settings, file, 2, lambda step: None)


def test_a_vocabulary_of_another_size_is_refused(toys: Path) -> None:
    llama, phi = find_forms(["toy-llama:gguf-q8_0", "toy-phi:gguf-q8_0"], toys)
    with quality_run([1, 2, 3, 4], toys) as run:
        run.record(llama)
        with pytest.raises(OptionError, match="toy-phi:gguf-q8_0 gives 640 logits, the baseline 512"):
            run.compare(phi)


def test_a_model_that_is_no_toy_needs_a_text(checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no text") as caught:
        evaluate([f"{checkpoint_folder}:gguf-q8_0"], EvalSettings(), tmp_path)
    assert "--text" in caught.value.hint and "WikiText-2" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_windows_fit_the_longest_context(toys: Path) -> None:
    with pytest.raises(OptionError, match="--window is 1025; the longest context of these artifacts is 1024"):
        evaluate(["toy-phi:gguf-q8_0"], EvalSettings(window_tokens=1025), toys)
    assert EvalSettings().fitted(None).size == EvalSettings().fitted(512).size == 512
    assert (EvalSettings().fitted(300).size, EvalSettings().fitted(300).first) == (300, 150)
    assert EvalSettings(window_tokens=300).fitted(300).size == 300


@pytest.mark.parametrize(
    ("size", "chosen", "first", "positions"), [(512, None, 256, 255), (7, None, 3, 3), (8, 0, 0, 7), (8, 6, 6, 1)]
)
def test_the_scored_positions_are_those_of_llama_perplexity(
    size: int, chosen: int | None, first: int, positions: int
) -> None:
    settings = EvalSettings(window_tokens=size, first_scored=chosen)
    assert (settings.first, settings.scored_positions) == (first, positions)  # n_ctx/2, n_ctx - 1 - first
    assert all(EvalSettings(window_tokens=each).scored_positions >= 1 for each in range(2, 20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_tokens": 1}, "--window is 1"),
        ({"most_windows": 0}, "--windows is 0"),
        ({"window_tokens": 16, "first_scored": 15}, "--score-from is 15; expected between 0 and 14"),
        ({"first_scored": 511}, "--score-from is 511"),
        ({"first_scored": -1}, "--score-from is -1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_settings_that_evaluate_nothing_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EvalSettings(**settings)


def test_an_error_in_a_worker_comes_over_with_its_hint(toys: Path) -> None:
    (form,) = find_forms(["toy-llama:gguf-q8_0"], toys)
    with (
        quality_run([1, 2, 999], toys) as run,
        pytest.raises(LocalqError, match="toy-llama:gguf-q8_0: token id 999"),
    ):
        run.record(form)


@pytest.mark.parametrize(("tokens", "has_rate"), [([1, 2], False), ([1, 2, 3], True)])
def test_the_shortest_windows_have_figures_too(tokens: list[int], has_rate: bool, toys: Path) -> None:
    for form in find_forms(["toy-llama:gguf-q8_0", "toy-llama:mlx-4bit"], toys):
        with quality_run(tokens, toys) as run:
            assert (run.record(form).generated_seconds_per_token is not None) == has_rate
            assert run.compare(form).mean_kl_divergence == pytest.approx(0, abs=1e-12)


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
    while "toy-llama:gguf-f32" not in (line := evaluation.stderr.readline()):
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
