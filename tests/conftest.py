"""What all tests share: a models folder of their own, nothing of the user's environment, the same random examples."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("random", deadline=None, database=None, print_blob=True)
settings.load_profile("repeatable")

RANDOM_RUN_FACTOR = 50
"""How many times its usual examples a property test draws under `--hypothesis-profile=random` (`make fuzz`)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give property tests more examples in a random run: what a test sets itself comes before its profile."""
    if settings.get_current_profile_name() != "random":
        return
    functions = {item.obj for item in items if isinstance(item, pytest.Function)}
    for function in filter(is_hypothesis_test, functions):
        usual = function._hypothesis_internal_use_settings
        more = settings(usual, max_examples=RANDOM_RUN_FACTOR * usual.max_examples, derandomize=False)
        function._hypothesis_internal_use_settings = more


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A process that a shell starts in the background ignores SIGINT, and hands that on to its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _quick_measurements() -> Iterator[None]:
    """Of the memory's bandwidth and of other programs' work: they take seconds otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("localq.hardware._BYTES_READ", 1 << 20)
        patch.setattr("localq.measure.machine._BUSY_SECONDS", 0.01)
        yield


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of the toys, made once in a session by whichever test needs them first."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def _own_environment(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALQ_MODELS", str(models_dir))
    monkeypatch.setenv("XDG_DATA_HOME", str(models_dir.parent / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(models_dir.parent / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("COLUMNS", "LOCALQ_DEBUG", "NO_COLOR", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
