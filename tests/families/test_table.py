"""Every architecture is found, or refused by name with what helps."""

from __future__ import annotations

from typing import Any

import pytest

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.config import parse_config
from localq.families.table import FAMILIES, family_of, find_family
from tests.tiny_checkpoints import CONFIGS, tensor_shapes


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_architecture_of_the_table_has_a_family(architecture: str) -> None:
    family = find_family(architecture)
    assert family.name and "mlx" in family.formats
    if "gguf" in family.formats:
        assert family.gguf_architecture()


@pytest.mark.parametrize("name", [name for name, raw in CONFIGS.items() if raw["model_type"] != "phimoe"])
def test_tensors_are_those_of_transformers(name: str) -> None:
    """Phi-MoE's, where experts are put together, are compared in test_phimoe.py."""
    config = parse_config(CONFIGS[name])
    layouts = find_family(config.architecture).tensors(config)
    assert {layout.name: layout.shape for layout in layouts} == dict(tensor_shapes(CONFIGS[name]))
    assert len({layout.gguf_name for layout in layouts}) == len(layouts)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "MistralForCausalLM", "Qwen3ForCausalLM"])
def test_an_unknown_architecture_is_refused_with_all_that_are_known(architecture: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{architecture}'") as caught:
        find_family(architecture)
    assert all(name in caught.value.hint for name in FAMILIES)
    assert "others made" in caught.value.hint


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("MixFormerSequentialForCausalLM", "old version"),
        ("Phi4FlashForCausalLM", "state-space"),
        ("LlamaForCausalLMEagle3", "draft"),
        ("Eagle3Speculator", "draft"),
        ("LlamaForSequenceClassification", "scores"),
        ("PhiForTokenClassification", "scores"),
        ("Phi3ForSequenceClassification", "scores"),
        ("MllamaForConditionalGeneration", "more than text"),
        ("Llama4ForConditionalGeneration", "more than text"),
        ("Llama4ForCausalLM", "Llama 4"),
        ("Phi3VForCausalLM", "more than text"),
        ("Phi4MMForCausalLM", "more than text"),
        ("Phi4MultimodalForCausalLM", "more than text"),
        ("Phi4ForCausalLMV", "more than text"),
        ("LlavaForConditionalGeneration", "more than text"),
        ("LlavaLlamaForCausalLM", "more than text"),
    ],
)
def test_related_architectures_are_refused_as_what_they_are(architecture: str, what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{architecture}'.*{what}") as caught:
        find_family(architecture)
    assert caught.value.hint


def test_the_first_version_of_phi_2_is_refused_by_its_model_type() -> None:
    with pytest.raises(UnsupportedModelError, match="phi-msft") as caught:
        family_of({"architectures": ["PhiForCausalLM"], "model_type": "phi-msft", "n_embd": 2560})
    assert "newest revision" in caught.value.hint


@pytest.mark.parametrize("model_type", ["llama", "phi", "phi3", "phi3small", "phimoe"])
def test_without_a_class_name_the_family_follows_from_the_model_type(model_type: str) -> None:
    family = family_of({"model_type": model_type})
    assert type(family).__module__ == f"localq.families.{model_type}"


@pytest.mark.parametrize("raw", [{}, {"model_type": "mistral"}, {"architectures": []}, {"architectures": "Llama"}])
def test_a_config_without_architecture_and_model_type_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="architectures"):
        family_of(raw)
