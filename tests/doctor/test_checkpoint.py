"""Every fault of a checkpoint is found and named with its fix, and everything else is examined as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.checkpoint.source import CheckpointPlace
from localq.conversion.convert import convert
from localq.doctor.checkpoint import Examination, examine, read_all_weights
from localq.recipes import parse_recipe
from tests.tiny_checkpoints import CONFIGS, MLX_CONFIGS, random_tensors, write_checkpoint, write_safetensors

FORMS = ("mlx-4bit", "gguf-q4_k_m")
PLENTY = 10**12


def examined(folder: Path, recipes: tuple[str, ...] = FORMS, free_bytes: int = PLENTY) -> Examination:
    found = examine(CheckpointPlace(folder, folder.name, None), list(map(parse_recipe, recipes)), free_bytes)
    assert all(fault.message and fault.hint for fault in found.faults)
    messages = [fault.message for fault in found.faults]
    assert len(messages) == len(set(messages))
    return found


def change_json(file: Path, **changes: Any) -> None:
    changed = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = random_tensors(CONFIGS["llama-3"])
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "llama", "llama-3")


def test_a_good_checkpoint_has_no_fault_and_every_fact(llama: Path) -> None:
    found = examined(llama)
    assert found.faults == [] and found.refused == {} and found.notes == []
    assert found.config is not None and found.family is not None and found.checkpoint is not None
    assert found.tokenizer is not None and found.chat_template == "works" and found.stored_as is None
    assert found.dtype_bytes == {"BF16": 2 * found.checkpoint.parameters}
    assert not found.is_read_whole


@pytest.mark.parametrize("name", ["llama-3.2", "phi-2", "phi-4-mini", "phi-3.5-moe", "phi-3-small"])
def test_sizes_and_fallbacks_are_those_that_convert_writes(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "model", name)
    recipes: tuple[str, ...] = ("mlx-3bit-g32", "mlx-mxfp4", "mlx-f32")
    if name not in MLX_CONFIGS:
        recipes += ("mlx-mixed-3-6", "gguf-q2_k", "gguf-q4_k_m", "gguf-iq4_xs", "gguf-bf16")
    forms = examined(folder, recipes).forms
    for form, artifact in zip(forms, convert(folder, recipes, models_dir=tmp_path / "models"), strict=True):
        manifest = artifact.manifest
        assert (form.recipe.name, form.weight_bytes) == (manifest.recipe, manifest.weight_bytes)
        assert (form.bits_per_weight, form.fallbacks) == (manifest.bits_per_weight, manifest.fallbacks)


def test_the_longest_context_shrinks_with_the_free_memory(llama: Path) -> None:
    contexts = [
        [form.longest_context_tokens for form in examined(llama, free_bytes=free).forms]
        for free in (PLENTY, 301_500_000, 300_000_000)
    ]
    assert contexts[0] == [512, 512]
    assert all(0 < tokens < 512 for tokens in contexts[1])
    assert contexts[2] == [0, 0]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"text"'])
def test_everything_else_is_examined_with_a_broken_config(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text)
    (llama / "tokenizer_config.json").write_text("{}")
    found = examined(llama)
    (fault,) = found.faults
    assert str(llama / "config.json") in fault.message
    assert found.dtype_bytes.keys() == {"BF16"} and found.tokenizer is not None and found.weights is not None
    assert any("no chat template" in note for note in found.notes)


def test_an_empty_folder_lacks_config_weights_and_tokenizer(tmp_path: Path) -> None:
    messages = " ".join(fault.message for fault in examined(tmp_path).faults)
    assert all(word in messages for word in ("config.json", "weights", "tokenizer.json"))


def test_faults_of_config_weights_tokenizer_and_template_are_listed_together(llama: Path) -> None:
    change_json(llama / "config.json", hidden_size=None, eos_token_id="x")
    change_json(llama / "tokenizer_config.json", chat_template="{% if")
    data = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(data[:-1])
    messages = [fault.message for fault in examined(llama).faults]
    expected = ["hidden_size", "model.safetensors", "eos_token_id", "chat template"]
    assert all(word in message for word, message in zip(expected, messages, strict=True))


def test_missing_misshapen_and_unknown_tensors_are_all_listed(llama: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:5]
        tensors["extra"] = np.ones(3, np.float32)

    change_tensors(llama, damage)
    found = examined(llama)
    expected = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "extra"]
    assert all(word in fault.message for word, fault in zip(expected, found.faults, strict=True))
    assert found.forms == [] and found.tokenizer is not None


def test_of_very_many_faulty_tensors_the_rest_is_counted(llama: Path) -> None:
    change_json(llama / "config.json", hidden_size=512)
    faults = examined(llama).faults
    assert len(faults) == 21
    assert faults[20].message == "and 1 more tensors that are missing, unknown or of a wrong shape"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), "model-00002-of-00003.safetensors"),
        (lambda folder: (folder / "model-00001-of-00003.safetensors").write_bytes(b"short"), "complete safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}'), "index"),
    ],
)
def test_missing_and_damaged_shards_are_named_once(tmp_path: Path, damage: Any, words: str) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3", shards=3)
    damage(folder)
    (fault,) = examined(folder).faults
    assert words in fault.message


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_fault_and_mlx_is_still_planned(llama: Path, file: str) -> None:
    (llama / file).write_text('{"a":')
    found = examined(llama)
    (fault,) = found.faults
    assert file in fault.message and found.tokenizer is None
    assert [form.recipe.name for form in found.forms] == ["mlx-4bit"]
    assert file in found.refused["gguf-q4_k_m"].message


def test_a_tokenizer_without_a_gguf_rule_is_a_fault_and_mlx_is_still_planned(llama: Path) -> None:
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    (llama / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = examined(llama)
    assert [form.recipe.name for form in found.forms] == ["mlx-4bit"]
    assert [fault.message for fault in found.faults] == [found.refused["gguf-q4_k_m"].message]


@pytest.mark.parametrize(
    ("file", "change", "key"),
    [
        ("config.json", {"max_position_embeddings": 10**30}, "llama.context_length"),
        ("config.json", {"rope_theta": 1e300}, "llama.rope.freq_base"),
    ],
)
def test_values_that_no_gguf_file_can_hold_are_named(llama: Path, file: str, change: Any, key: str) -> None:
    change_json(llama / file, **change)
    found = examined(llama)
    assert [form.recipe.name for form in found.forms] == ["mlx-4bit"]
    assert f"a GGUF file can't hold {key}" in found.refused["gguf-q4_k_m"].message


def test_a_tokenizer_larger_than_the_model_is_named_with_both_sizes(llama: Path) -> None:
    change_json(llama / "config.json", vocab_size=100)
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    change_tensors(llama, lambda tensors: tensors.update({name: tensors[name][:100] for name in rows}))
    found = examined(llama)
    (fault,) = found.faults
    assert found.tokenizer is not None
    assert f"{found.tokenizer.vocabulary_size} tokens" in fault.message and "100" in fault.message


@pytest.mark.parametrize(
    "template", ['{{ raise_exception("never") }}', "{% if", "{{ 1 // 0 }}", 5, [{"name": "tools"}]]
)
def test_a_template_that_fails_is_a_fault(llama: Path, template: Any) -> None:
    change_json(llama / "tokenizer_config.json", chat_template=template)
    found = examined(llama)
    (fault,) = found.faults
    assert found.chat_template == "fails"
    assert "chat" in fault.message and "--raw" in fault.hint


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("Qwen2ForCausalLM", "Qwen2ForCausalLM"), ("MllamaForConditionalGeneration", "more than text")],
)
def test_an_architecture_that_is_not_converted_is_named(llama: Path, architecture: str, words: str) -> None:
    change_json(llama / "config.json", architectures=[architecture], model_type="other")
    (fault,) = examined(llama).faults
    assert words in fault.message


def test_a_family_of_mlx_alone_is_planned_in_its_forms_without_a_fault(tmp_path: Path) -> None:
    found = examined(write_checkpoint(tmp_path / "small", "phi-3-small"))
    assert found.faults == []
    assert [form.recipe.name for form in found.forms] == ["mlx-4bit"]
    assert "Phi-3-small" in found.refused["gguf-q4_k_m"].message
    mixed = examined(tmp_path / "small", ["mlx-mixed-4-6"])
    assert "its lower number of bits" in mixed.refused["mlx-mixed-4-6"].message


def test_differences_of_a_runtime_are_noted(tmp_path: Path) -> None:
    found = examined(write_checkpoint(tmp_path / "moe", "phi-3.5-moe"))
    assert found.faults == [] and any("softmax" in note for note in found.notes)


@pytest.mark.parametrize("settings", [{"quant_method": "hqq"}, {"quant_method": "gptq", "bits": 4, "group_size": 128}])
def test_the_storage_of_weights_is_described(llama: Path, settings: dict[str, Any]) -> None:
    change_json(llama / "config.json", quantization_config=settings)
    found = examined(llama)
    known = settings["quant_method"] == "gptq"
    assert found.stored_as == ("GPTQ, 4 bits, groups of 128" if known else "hqq")
    assert len(found.faults) == (0 if known else 1)


def test_a_missing_backend_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localq.backends.find_spec", lambda name: None)
    found = examined(llama)
    assert [(form.recipe.name, form.runs_here) for form in found.forms] == [("mlx-4bit", False)]
    assert "llama_cpp" in found.refused["gguf-q4_k_m"].message


def test_every_tensor_with_values_that_are_no_numbers_is_found(llama: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][3] = np.nan
        tensors["model.layers.1.mlp.up_proj.weight"][7, 4] = np.inf

    change_tensors(llama, damage)
    found = examined(llama)
    assert found.faults == []
    seen: list[tuple[int, int]] = []
    read_all_weights(found, lambda done, total: seen.append((done, total)))
    messages = sorted(fault.message for fault in found.faults)
    assert messages == [
        "tensor model.layers.1.mlp.up_proj.weight holds inf in row 7",
        "tensor model.norm.weight holds nan in row 3",
    ]
    assert seen == sorted(seen) and seen[-1] == (found.dtype_bytes["BF16"],) * 2
    assert found.is_read_whole


def test_weights_are_read_whole_whatever_else_is_wrong(llama: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        tensors["odd.scalar"] = np.array(np.nan, np.float32)
        tensors["odd.empty"] = np.zeros((5, 0), np.float32)

    change_tensors(llama, damage)
    (llama / "config.json").unlink()
    found = examined(llama)
    read_all_weights(found, lambda done, total: None)
    assert any("odd.scalar holds nan" in fault.message for fault in found.faults)


def test_a_file_that_shrank_since_its_header_was_read_is_a_fault(llama: Path) -> None:
    found = examined(llama)
    (llama / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:10_000])
    read_all_weights(found, lambda done, total: None)
    assert any("ended while tensor" in fault.message for fault in found.faults)
    found = examined(llama.parent / "gone")
    read_all_weights(found, lambda done, total: None)
    assert found.faults and not found.is_read_whole
