"""The machine that a measurement was made on: what it is, and how fast it reads memory."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from localq.backends import has_backend
from localq.hardware import available_logical_cores, has_metal, mlx_runs_on_gpu
from localq.version import library_versions

if TYPE_CHECKING:
    from localq.measure.reports import Machine

_LIBRARIES = ("mlx", "mlx-lm", "llama-cpp-python")
_BUSY_SECONDS = 0.5

_BYTES_READ = 1 << 30  # beyond any cache: those of servers have half of it
_ROUNDS = 10

_CPU_INFORMATION = Path("/proc/cpuinfo")


def describe_machine() -> Machine:
    """What the operating system says; takes half a second.

    `busy_cores` is measured over that time, and not the load average, which still counts a conversion just finished.
    """
    import psutil

    from localq.measure.reports import Machine  # its pydantic must not count in a worker's peak memory

    logical_cores = psutil.cpu_count() or 1
    physical_cores = psutil.cpu_count(logical=False) or logical_cores  # some ARM systems don't know them
    busy_cores = psutil.cpu_percent(_BUSY_SECONDS) / 100 * logical_cores
    return Machine(
        cpu=_cpu(),
        physical_cores=physical_cores,
        logical_cores=logical_cores,
        memory_bytes=psutil.virtual_memory().total,
        os=platform.platform(),
        python=platform.python_version(),
        versions=library_versions(_LIBRARIES),
        metal=has_metal(),
        busy_cores=round(busy_cores, 2),
        busy=busy_cores > physical_cores / 2,
    )


def memory_bandwidth_bytes_per_second() -> float:
    """Bytes read per second by what computes here, the best of ten rounds; takes a second or two.

    On a Mac by the GPU, elsewhere by all cores together. A graphics card's own memory is not measured.
    """
    on_gpu = sys.platform == "darwin" and has_backend("mlx") and mlx_runs_on_gpu()
    return _read_by_gpu() if on_gpu else _read_by_cores()


def _read_by_cores() -> float:
    """Each core sums up an array of its own, which takes almost no arithmetic.

    On two cores with AVX-512 this read 10% faster than numpy's maximum, and faster than a loop in C with prefetching.
    """
    import numpy as np

    cores = available_logical_cores()
    arrays = [np.ones(_BYTES_READ // cores // 8, dtype=np.int64) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        return _best_rate(lambda: list(pool.map(np.sum, arrays)))


def _read_by_gpu() -> float:
    """One maximum over an array, by Metal. Not run on a Mac."""
    import mlx.core as mx

    array = mx.ones((_BYTES_READ // 4,), dtype=mx.float32)
    mx.eval(array)
    return _best_rate(lambda: mx.eval(mx.max(array)))


def _best_rate(read: Callable[[], object]) -> float:
    best = 0.0
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        read()
        best = max(best, _BYTES_READ / (time.perf_counter() - started))
    return best


def _cpu() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return said.strip() or platform.machine()
    with suppress(OSError):  # some sandboxes have no such file, and Linux on ARM has no such line
        text = _CPU_INFORMATION.read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return match[1].strip()
    return platform.processor() or platform.machine() or "unknown"
