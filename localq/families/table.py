"""Which family converts which architecture. A new family is one file and one line here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from localq.errors import UnsupportedModelError
from localq.families.base import Family
from localq.families.config import architecture_of

FAMILIES = {
    "LLaMAForCausalLM": "localq.families.llama",
    "LlamaForCausalLM": "localq.families.llama",
    "LlamaModel": "localq.families.llama",
    "Phi3ForCausalLM": "localq.families.phi3",
    "Phi3SmallForCausalLM": "localq.families.phi3small",
    "PhiForCausalLM": "localq.families.phi",
    "PhiMoEForCausalLM": "localq.families.phimoe",
    "PhimoeForCausalLM": "localq.families.phimoe",
}
"""Class name in `config.json` -> module that holds its `FAMILY`. Fine-tunes of llamafied Phi-4 say LlamaModel."""

_REMOTE_CODE = (
    "an old version of Phi that needs code from its repository",
    "take the repository's newest revision, which has a PhiForCausalLM",
)
_REFUSALS: tuple[tuple[str, str, str], ...] = (
    (r"^MixFormerSequential", *_REMOTE_CODE),
    (r"^Phi4Flash", "a state-space hybrid that no runtime of localq runs", "take Phi-4-mini-reasoning"),
    (r"Eagle|Medusa|Draft", "a draft head, not a complete model", "convert the model that it drafts for"),
    (
        r"Classification|QuestionAnswering|RewardModel|Embedding",
        "a model that scores or labels text and does not write any",
        "localq converts models that generate text",
    ),
    (
        r"^Llama4ForCausalLM",
        "Llama 4, whose experts localq does not convert",
        "take a Llama 3.x, or a GGUF file of Llama 4 that others made",
    ),
    (
        r"^Llama4|^Mllama|^Phi3V|^Phi4MM|^Phi4Multimodal|CausalLMV$|ForConditionalGeneration|Llava|ImageText",
        "a model for more than text",
        "localq converts text-only models, such as Llama 3.x and Phi-4-mini; a GGUF file that others made may run",
    ),
)
"""Pattern of class names, what such a model is, and what helps."""


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family of a `config.json`; raises UnsupportedModelError or CheckpointError that says what helps."""
    architecture = architecture_of(raw)
    if raw.get("model_type") == "phi-msft":
        raise UnsupportedModelError(f"{architecture} of model type 'phi-msft' is {_REMOTE_CODE[0]}", _REMOTE_CODE[1])
    return find_family(architecture)


def find_family(architecture: str) -> Family:
    """The family of a class name; raises UnsupportedModelError that says what helps."""
    module = FAMILIES.get(architecture)
    if module is not None:
        return cast(Family, import_module(module).FAMILY)
    for pattern, what, hint in _REFUSALS:
        if re.search(pattern, architecture):
            raise UnsupportedModelError(f"architecture {architecture!r} is not supported: {what}", hint)
    raise UnsupportedModelError(
        f"architecture {architecture!r} is not supported",
        f"localq converts Llama and Phi ({', '.join(sorted(FAMILIES))}); "
        "it runs other models as GGUF files and MLX folders that others made",
    )
