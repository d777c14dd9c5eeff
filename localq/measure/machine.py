"""The machine that a measurement was made on."""

from __future__ import annotations

import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from localq.hardware import has_metal
from localq.version import library_versions

if TYPE_CHECKING:
    from localq.measure.reports import Machine

_LIBRARIES = ("mlx", "mlx-lm", "llama-cpp-python")
_BUSY_SECONDS = 0.5
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
