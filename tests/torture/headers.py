"""`python -m tests.torture.headers`: GGUF files with changed headers and flipped bytes, opened by one process.

The process that asks loads each file and writes four tokens, as someone in a notebook would. A file that ends it, or
keeps it for a minute, is counted as a failure and named; so is every error that is not localq's own. The files follow
from `--seed`; one that failed is kept in `--keep`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.torture.gguf_bytes import ARRAY, FORMATS, STRING, GgufBytes, Value, read

_MOST_SECONDS = 90
"""For one file: a trial that does not come to an end takes 30."""
_INTEGERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    31,
    63,
    64,
    65,
    100,
    512,
    513,
    1024,
    1025,
    4097,
    2**16,
    2**20,
    2**31 - 1,
    2**32 - 1,
)
_FLOATS = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 1e38, -1e-5, 1.0, 0.5)
_TEXTS = (
    "",
    "llama",
    "bogus",
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "none",
    "yarn",
    "longrope",
    "linear",
    "\0",
    "a\0b",
    "x" * 100_000,
)
_TEXTS += ("phi2", "phi3", "gemma2", "qwen2", "mamba", "clip", "qwen3moe", "deepseek2", "granitehybrid", "whisper")
_NEW_KEYS = str.split(
    "expert_count expert_used_count expert_group_count expert_group_used_count expert_shared_count "
    "nextn_predict_layers expert_weights_scale expert_gating_func leading_dense_block_count "
    "attention.layer_norm_rms_epsilon attention.layer_norm_epsilon attention.key_length attention.value_length "
    "attention.head_count attention.head_count_kv attention.sliding_window attention.sliding_window_pattern "
    "attention.causal attention.scale attention.max_alibi_bias attention.clamp_kqv attention.kv_lora_rank "
    "attention.q_lora_rank attention.relative_buckets_count rope.dimension_count rope.dimension_sections "
    "rope.freq_base rope.scaling.type rope.scaling.factor rope.scaling.original_context_length "
    "rope.scaling.attn_factor rope.scaling.yarn_log_multiplier vocab_size context_length embedding_length "
    "embedding_length_out block_count feed_forward_length pooling_type use_parallel_residual logit_scale "
    "attn_logit_softcapping final_logit_softcapping ssm.conv_kernel ssm.inner_size ssm.state_size "
    "ssm.time_step_rank ssm.group_count full_attention_interval tensor_data_layout"
)
_GENERAL_KEYS = str.split(
    "general.alignment general.architecture general.type general.file_type general.quantization_version "
    "split.no split.count split.tensors.count tokenizer.ggml.model tokenizer.ggml.pre "
    "tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id tokenizer.ggml.eot_token_id "
    "tokenizer.ggml.eom_token_id tokenizer.ggml.unknown_token_id tokenizer.ggml.padding_token_id "
    "tokenizer.ggml.add_bos_token tokenizer.ggml.add_space_prefix tokenizer.ggml.remove_extra_whitespaces "
    "tokenizer.ggml.token_type_count tokenizer.ggml.precompiled_charsmap tokenizer.ggml.fim_pre_token_id "
    "tokenizer.ggml.suppress_tokens tokenizer.ggml.add_eos_token tokenizer.chat_template"
)


def write_case(seed: int, bases: list[Path], file: Path, *, is_flip: bool) -> str:
    """Write the file of a number; returns what was changed."""
    random_ = random.Random(f"{seed} {is_flip}")
    base = random_.choice(bases)
    if is_flip:
        data = bytearray(base.read_bytes())
        header_bytes = len(data) - len(read(base).data)
        said = []
        for _ in range(random_.choice((1, 1, 1, 2, 8))):
            position = random_.randrange(header_bytes if random_.random() < 0.75 else len(data))
            data[position] ^= 1 << random_.randrange(8) if random_.random() < 0.5 else random_.randrange(1, 256)
            said.append(f"byte {position}")
        file.write_bytes(data)
        return f"{base.name}: {', '.join(said)}"
    parts, said = read(base), []
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        with suppress(LookupError, ValueError, TypeError, AttributeError):  # after an earlier change
            parts, change = random_.choice(_CHANGES)(random_, parts)
            said.append(change)
    file.write_bytes(parts.to_bytes())
    return f"{base.name}: {'; '.join(said)}"


Change = tuple[GgufBytes, str]


def _other_value(random_: random.Random, parts: GgufBytes) -> Change:
    """Another value of the same type."""
    key = random_.choice([key for key, value in parts.values.items() if value.kind != ARRAY])
    return _with(parts, key, _any_value(random_, parts.values[key].kind))


def _new_key(random_: random.Random, parts: GgufBytes) -> Change:
    architecture = parts.values["general.architecture"].content.decode()
    own = [f"{architecture}.{key}" for key in _NEW_KEYS]
    key = random_.choice(own if random_.random() < 0.7 else list(_GENERAL_KEYS))
    draw = random_.random()
    kind = random_.choice(list(FORMATS)) if draw < 0.1 else random_.choice((4, 4, 4, 5, 6, 7, STRING))
    if draw > 0.9:
        layers = parts.values.get(f"{architecture}.block_count", Value(4, 2)).content
        return _with(parts, key, Value(ARRAY, [random_.choice((0, 1, 2, 3, 64)) for _ in range(layers % 600)], 4))
    return _with(parts, key, _any_value(random_, kind))


def _no_key(random_: random.Random, parts: GgufBytes) -> Change:
    key = random_.choice(list(parts.values))
    return replace(parts, values={name: value for name, value in parts.values.items() if name != key}), f"no {key}"


def _other_array(random_: random.Random, parts: GgufBytes) -> Change:
    """An array cut, doubled, or with other items."""
    key = random_.choice([key for key, value in parts.values.items() if value.kind == ARRAY])
    value = parts.values[key]
    items, place = list(value.content), random_.randrange(len(value.content))
    draw = random_.randrange(5)
    if draw == 0:
        items = items[:place]
    elif draw == 1:
        items *= 2
    elif draw == 2:
        items[place] = items[random_.randrange(len(items))]
    elif value.item == STRING:
        items[place] = random_.choice(
            (b"", b"\0", b"a\0", b"\xff\xfe", b"<0xZZ>", b"<0x", b" ", b"a b c", b"x" * 70_000)
        )
    else:
        items[place] = _any_value(random_, value.item).content
    return _with(parts, key, Value(ARRAY, items, value.item))


def _other_tensor(random_: random.Random, parts: GgufBytes) -> Change:
    number = random_.randrange(len(parts.tensors))
    name, shape, kind, offset = parts.tensors[number]
    draw = random_.randrange(6)
    if draw == 0:
        shape = tuple(random_.choice((0, 1, 2, 31, 32, 256, 2**31, 2**62)) for _ in shape)
    elif draw == 1:
        shape = shape[::-1]
    elif draw == 2:
        kind = random_.choice((0, 1, 2, 3, 6, 8, 10, 12, 14, 16, 23, 24, 30, 34, 39, 99))
    elif draw == 3:
        offset = random_.choice((0, 1, 32, offset + 32, 2**40, 2**63))
    elif draw == 4:
        name = random_.choice(
            ("", "token_embd.weight", "blk.0.attn_q.weight", "blk.600.x", "rope_freqs.weight", "x" * 63)
        )
    tensors = list(parts.tensors)
    tensors[number] = (name, shape, kind, offset)
    if draw == 5:
        del tensors[number]
    return replace(parts, tensors=tuple(tensors)), f"tensor {parts.tensors[number][0]}: change {draw}"


_CHANGES: tuple[Callable[[random.Random, GgufBytes], Change], ...] = (
    _other_value,
    _new_key,
    _new_key,
    _new_key,
    _no_key,
    _other_array,
    _other_tensor,
)


def _any_value(random_: random.Random, kind: int) -> Value:
    if kind == STRING:
        return Value(kind, random_.choice(_TEXTS).encode())
    if kind == 7:
        return Value(kind, random_.random() < 0.5)
    if kind in (6, 12):
        return Value(kind, random_.choice(_FLOATS))
    bits, signed = {0: 8, 1: 8, 2: 16, 3: 16, 4: 32, 5: 32, 10: 64, 11: 64}[kind], kind in (1, 3, 5, 11)
    number = random_.choice(_INTEGERS) % 2**bits
    return Value(kind, number - 2**bits if signed and number >= 2 ** (bits - 1) else number)


def _with(parts: GgufBytes, key: str, value: Value) -> Change:
    return replace(parts, values={**parts.values, key: value}), f"{key} = {str(value.content)[:60]!r}"


def base_files(folder: Path) -> list[Path]:
    """Sound files: the toys as localq makes them, and models of other families."""
    import localq
    from tests.foreign_forms import GGUF_ARCHITECTURES, write_gguf

    made = [
        localq.convert(f"toy-{family}", [recipe], models_dir=folder / "models")[0].path
        for family, recipe in (("llama", "gguf-q8_0"), ("phi", "gguf-q4_k_m"))
    ]
    return [*made, *(write_gguf(folder / f"{name}.gguf", name) for name in GGUF_ARCHITECTURES)]


def serve() -> None:
    """The process that asks: a file's name per line, an outcome per line."""
    import localq

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            with localq.load(Path(line.rstrip("\n"))) as model:
                model.generate("Hello", raw=True, max_tokens=4)
            outcome = "opened"
        except localq.LocalqError as error:
            outcome = f"{type(error).__name__}: {error.message}"
        except BaseException as error:
            outcome = f"unexpected {type(error).__name__}: {error}"
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


@dataclass
class Asker:
    """A process that asks, started again where a file has ended it."""

    folder: Path
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    def outcome(self, file: Path) -> str:
        """What opening a file came to."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.headers", "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache"), "GGML_NO_BACKTRACE": "1"},
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{file}\n")
        self.process.stdin.flush()
        with ThreadPoolExecutor(1) as reader:
            line = reader.submit(self.process.stdout.readline)
            try:
                answer = line.result(_MOST_SECONDS)
            except TimeoutError:
                self.process.kill()
                self.process = None
                return "blocked the process"
        if answer:
            return str(json.loads(answer))
        status, self.process = self.process.wait(), None
        return f"ended the process: {status}"


def _run(numbers: range, bases: list[Path], given: argparse.Namespace, folder: Path, *, is_flip: bool) -> Iterator[str]:
    """An outcome for each number; a file that failed is named and kept."""
    asker = Asker(folder)
    file = folder / f"{numbers.start}-{numbers.step}-{is_flip}.gguf"
    for number in numbers:
        said = write_case(number, bases, file, is_flip=is_flip)
        started = time.monotonic()
        outcome = asker.outcome(file)
        kind = outcome.split(":")[0]
        if kind.startswith(("ended", "blocked", "unexpected")):
            sys.stdout.write(f"{'flip' if is_flip else 'header'} {number} ({said}): {outcome}\n")
            sys.stdout.flush()
            if given.keep:
                file.rename(Path(given.keep) / f"{'flip' if is_flip else 'header'}-{number}.gguf")
        elif given.verbose:
            sys.stdout.write(f"{number} {time.monotonic() - started:.1f} s ({said}): {outcome[:300]}\n")
        yield kind
    if asker.process is not None:
        asker.process.kill()


def main() -> int:
    """Count outcomes; 1 where a file ended or blocked the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", help="a folder for the files that failed")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return 0
    started, counts = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.jobs) as pool:
        folder = Path(name)
        bases = base_files(folder)
        for is_flip, count in ((False, given.count), (True, given.flips)):

            def outcomes(job: int, is_flip: bool = is_flip, count: int = count) -> Counter[str]:
                numbers = range(given.seed + job, given.seed + count, given.jobs)
                return Counter(_run(numbers, bases, given, folder, is_flip=is_flip))

            for found in pool.map(outcomes, range(given.jobs)):
                counts += found
    for outcome, number in counts.most_common():
        sys.stdout.write(f"{number:6} {outcome}\n")
    sys.stdout.write(f"{time.monotonic() - started:.0f} s\n")
    return int(any(outcome.startswith(("ended", "blocked", "unexpected")) for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
