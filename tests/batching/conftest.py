"""The toy Phi in the forms that these tests open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localq.conversion.convert import convert
from localq.model import Model, open_form
from localq.options import LoadOptions
from tests.batching.asking import FORMS


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of the toy Phi in each form."""
    artifacts = convert("toy-phi", FORMS, models_dir=tmp_path_factory.mktemp("models"))
    return {artifact.manifest.recipe: artifact.folder for artifact in artifacts}


@pytest.fixture
def opened(toys: dict[str, Path]) -> Iterator[Callable[..., Model]]:
    """Opens a toy whose replies don't end by themselves; closed after the test."""
    models: list[Model] = []

    def open_toy(form: str = "gguf-f32", **options: Any) -> Model:
        model = open_form(toys[form], LoadOptions(**{"context_length": 512, **options}))
        model.end_tokens = frozenset()
        models.append(model)
        return model

    yield open_toy
    for model in models:
        model.close()
