"""What all tests share: a models folder of their own, and no environment of the user's."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A process that a shell starts in the background ignores SIGINT, and hands that on to its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of the toys, made once in a session by whichever test needs them first."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def _own_environment(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALQ_MODELS", str(models_dir))
    monkeypatch.setenv("XDG_DATA_HOME", str(models_dir.parent / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("LOCALQ_DEBUG", "NO_COLOR", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
