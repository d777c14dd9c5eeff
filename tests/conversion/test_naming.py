"""What a model card says goes into the GGUF file; one that can't be read, or that is out to do harm, is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from localq.conversion.convert import convert
from tests.tiny_checkpoints import write_checkpoint

WITHOUT_CARD = {"general.name": "Tiny", "general.size_label": "1.6M"}
DOUBLING = "\n".join(f"a{level + 1}: &a{level + 1} [{', '.join([f'*a{level}'] * 9)}]" for level in range(6))
"""Each list has the one before nine times: half a million words in a few lines."""


def general_of(tmp_path: Path, card: str | bytes) -> dict[str, Any]:
    """The keys `general.*` of the GGUF file, without those that say how it is stored."""
    folder = write_checkpoint(tmp_path / "tiny", "llama-3")
    (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    (artifact,) = convert(str(folder), ["gguf-q8_0"], models_dir=tmp_path / "models")
    found = {name: field.contents() for name, field in GGUFReader(artifact.path).fields.items()}
    stored = ("architecture", "type", "file_type", "quantization_version")
    return {k: v for k, v in found.items() if k.startswith("general.") and k.removeprefix("general.") not in stored}


def test_what_a_card_says_is_written(tmp_path: Path) -> None:
    head = ["license: mit", "author: Ada", "language: [en, fr]", "tags: [chat]", "base_model: org/base-7b"]
    assert general_of(tmp_path, "\n".join(["---", *head, "---", "# Tiny", "author: Bob"])) == {
        **WITHOUT_CARD,
        "general.license": "mit",
        "general.author": "Ada",
        "general.languages": ["en", "fr"],
        "general.tags": ["chat"],
        "general.base_model.count": 1,
        "general.base_model.0.name": "Base 7b",
        "general.base_model.0.organization": "Org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/base-7b",
    }


@pytest.mark.parametrize(
    "head",
    [
        "author: [Ada",
        "- author",
        "author: {first: Ada}\nlicense: mit",
        "license: mit\nversion: 2024-01-01",
        f"author: {'[' * 5000}{']' * 5000}",
        "author: !!python/object/apply:os.getcwd []",
        b"author: \xff\xfe",
        "author: Ada\nversion: 3",
        "tags: [[chat], [code]]",
        f"a0: &a0 [word]\n{DOUBLING}\ntags: *a6",
        f"a0: &a0 {{author: Ada}}\n{DOUBLING.replace('[', '{<<: [').replace(']', ']}')}\nlicense: mit",
        f"a: &a {'word ' * 1000}\ntags: [{', '.join(['*a'] * 1000)}]",
    ],
    ids=str.split("syntax list nested date deep code bytes number arrays lists merged long"),
)
def test_a_card_that_cant_be_used_is_left_out(tmp_path: Path, head: str | bytes) -> None:
    content = head if isinstance(head, bytes) else head.encode()
    assert general_of(tmp_path, b"---\n" + content + b"\n---\n") == WITHOUT_CARD


def test_a_card_of_many_megabytes_is_left_out(tmp_path: Path) -> None:
    assert general_of(tmp_path, "---\nauthor: Ada\n---\n" + "word " * (1 << 18)) == WITHOUT_CARD


def test_marks_that_repeat_nothing_are_text(tmp_path: Path) -> None:
    found = general_of(tmp_path, "---\nauthor: R&D of AT&T, 2 * 3 & more\ntags: ['*T', '&a']\n---\n")
    assert (found["general.author"], found["general.tags"]) == ("R&D of AT&T, 2 * 3 & more", ["*T", "&a"])
