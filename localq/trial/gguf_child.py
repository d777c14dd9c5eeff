"""The child process of a trial: llama.cpp opens a GGUF file and computes one short pass. It may be ended at any point.

Imports neither numpy nor the whole of llama_cpp: only its declarations of llama.cpp's C functions.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_TEXT = "Hello, Wörld! 你好 👋 1234\n\t  It's <|a|> </s> test.".encode()
_PASS_TOKENS = 2
"""Of the one pass: several, so that matrices are multiplied as for a prompt."""
_CONTEXT_TOKENS = 256
_MOST_THREADS = 4


class _Parameters(ctypes.Structure):
    """`struct gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def main(most_seconds: str, *parts: str) -> None:
    """Do with a file, of which `parts` are all parts, what localq does with it; end with status 0 where that works.

    Also where llama.cpp refuses the file: then it does so in every process.
    """
    signal.alarm(int(most_seconds))  # the signal ends the process, also within C code and without its parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    api, libggml = _llama_cpp()

    write_errors = api.llama_log_callback(_write_errors)  # as long as llama.cpp may call it
    api.llama_log_set(write_errors, ctypes.c_void_p())
    api.llama_backend_init()
    libggml.gguf_init_from_file.restype = ctypes.c_void_p
    libggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Parameters]
    if all(libggml.gguf_init_from_file(os.fsencode(part), _Parameters(no_alloc=True)) for part in parts):
        _open(api, os.fsencode(parts[0]))
    os._exit(0)


def _write_errors(level: int, text: bytes, _user_data: object) -> None:
    if level == _ERROR_LEVEL:
        os.write(2, text)


def _llama_cpp() -> tuple[Any, Any]:
    """llama_cpp's C functions and ggml's, without the rest of the package, whose import takes longer than the trial."""
    spec = PathFinder.find_spec("llama_cpp")
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    from llama_cpp import llama_cpp as api
    from llama_cpp._ggml import libggml

    return api, libggml


def _open(api: Any, path: bytes) -> None:
    parameters = api.llama_model_default_params()
    parameters.use_extra_bufts = False  # weights stay mapped, and are not written again in another order
    model = api.llama_model_load_from_file(path, parameters)
    if not model:
        parameters.vocab_only = True  # as localq reads the vocabulary first
        vocabulary = api.llama_model_load_from_file(path, parameters)
        if vocabulary:
            _tokenize(api, vocabulary)
        return
    tokens = _tokenize(api, model)
    _compute(api, model, (tokens * _PASS_TOKENS or [0] * _PASS_TOKENS)[:_PASS_TOKENS])


def _tokenize(api: Any, model: Any) -> list[int]:
    vocabulary = api.llama_model_get_vocab(model)
    if api.llama_vocab_type(vocabulary) == api.LLAMA_VOCAB_TYPE_NONE:
        return []
    piece = ctypes.create_string_buffer(1024)
    for token in range(api.llama_vocab_n_tokens(vocabulary)):
        api.llama_token_to_piece(vocabulary, token, piece, len(piece), 0, False)
    tokens = (api.llama_token * (len(_TEXT) + 8))()
    count = api.llama_tokenize(vocabulary, _TEXT, len(_TEXT), tokens, len(tokens), True, True)
    return list(tokens[: max(0, count)])


def _compute(api: Any, model: Any, tokens: list[int]) -> None:
    parameters = api.llama_context_default_params()
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_batch = parameters.n_ubatch = _PASS_TOKENS
    parameters.n_threads = parameters.n_threads_batch = min(_MOST_THREADS, os.cpu_count() or 1)
    parameters.swa_full = True
    context = api.llama_init_from_model(model, parameters)
    if context:
        ids = (api.llama_token * len(tokens))(*tokens)
        api.llama_decode(context, api.llama_batch_get_one(ids, len(tokens)))
        api.llama_synchronize(context)
