"""Only for the llama.cpp engine: its reasons when a file can't be loaded, and where it computes."""

from __future__ import annotations

import ctypes
import platform
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp._ggml import libggml

from localq.engines import llamacpp_loading
from localq.engines.llamacpp import open_engine
from localq.engines.llamacpp_loading import _extra_buffer_types, _function
from localq.errors import EngineError
from localq.options import LoadOptions


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.gguf.*No such file"):
        open_engine(tmp_path / "nowhere.gguf", LoadOptions(), 32)


def test_a_file_that_is_not_gguf_is_refused_with_llama_cpps_own_reason(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("once upon a time there was a file")
    with pytest.raises(EngineError, match="invalid magic"):
        open_engine(path, LoadOptions(), 32)


def test_an_unknown_architecture_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "nonesuch")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(EngineError, match="nonesuch"):
        open_engine(path, LoadOptions(), 32)


def test_a_failed_load_writes_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError):
        open_engine(tmp_path / "nowhere.gguf", LoadOptions(), 32)
    assert capfd.readouterr() == ("", "")


def test_weights_may_be_repacked_for_the_processor_but_never_for_amx() -> None:
    llamacpp_loading.llama_api()
    types = _extra_buffer_types(libggml)
    name_of = _function(libggml.ggml_backend_buft_name, ctypes.c_char_p, ctypes.c_void_p)
    names = []
    while types[len(names)] is not None:
        names.append(name_of(types[len(names)]))
    assert b"AMX" not in names
    if platform.machine() == "x86_64":
        assert b"CPU_REPACK" in names


def test_an_interrupted_load_frees_what_was_loaded(
    gguf_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = llamacpp_loading.llama_api()
    captures = 0

    @contextmanager
    def interrupted_once() -> Iterator[list[str]]:
        nonlocal captures
        captures += 1
        yield []
        if captures == 1:
            raise KeyboardInterrupt

    freed: list[tuple[str, bool]] = []
    for name in ("llama_free", "llama_model_free"):
        free = getattr(api, name)
        monkeypatch.setattr(api, name, lambda it, name=name, free=free: (freed.append((name, bool(it))), free(it)))
    monkeypatch.setattr(llamacpp_loading, "captured_llama_log", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        open_engine(gguf_file("gguf-q8_0"), LoadOptions(), 32)
    assert freed == [("llama_free", True), ("llama_model_free", True)]


def test_ctrl_c_ends_loading_at_the_next_tensor(
    gguf_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = llamacpp_loading.llama_api()
    as_c_function = api.llama_progress_callback
    answers: list[bool] = []

    def interrupting(keeps_loading: Callable[[float, Any], bool]) -> Any:
        def answer(progress: float, user_data: Any) -> bool:
            if len(answers) == 1:
                signal.raise_signal(signal.SIGINT)
            answers.append(keeps_loading(progress, user_data))
            return answers[-1]

        return as_c_function(answer)

    monkeypatch.setattr(api, "llama_progress_callback", interrupting)
    with pytest.raises(KeyboardInterrupt):
        open_engine(gguf_file("gguf-q8_0"), LoadOptions(threads=1), 32)
    assert answers == [True, False]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    engine = open_engine(gguf_file("gguf-q8_0"), LoadOptions(threads=1), 32)
    assert engine.prefill([1, 2, 3]) == 0
    engine.close()


def test_a_handler_of_the_callers_own_stays_in_place_and_other_threads_can_load(
    gguf_file: Callable[[str], Path],
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: heard.append(number))
    try:
        with llamacpp_loading.interruptible() as keeps_loading:
            signal.raise_signal(signal.SIGINT)
            assert keeps_loading(0.5, None)
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(open_engine, gguf_file("gguf-q8_0"), LoadOptions(threads=1), 32).result().close()


def test_a_float32_file_is_kept_from_the_gpu_and_no_other_one(
    gguf_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = llamacpp_loading.llama_api()
    load, loaded = api.llama_model_load_from_file, []

    def recording_load(path: bytes, parameters: Any) -> Any:
        if not parameters.vocab_only:
            loaded.append((parameters.n_gpu_layers, bool(parameters.devices)))
        return load(path, parameters)

    def logits(recipe: str) -> np.ndarray:
        engine = open_engine(gguf_file(recipe), LoadOptions(threads=1), 32)
        engine.prefill([5, 6, 7])
        try:
            return engine.logits()
        finally:
            engine.close()

    expected = logits("gguf-f32")
    monkeypatch.setattr(api, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(api, "llama_model_load_from_file", recording_load)
    assert np.array_equal(logits("gguf-f32"), expected)
    assert loaded == [(0, True)]
    logits("gguf-q8_0")
    logits("gguf-bf16")
    assert loaded[1:] == [(-1, False)] * 2
