"""The machine that a measurement was made on. Knows no models."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from localq.hardware import has_metal
from localq.version import library_versions

_LIBRARIES = ("mlx", "mlx-lm", "llama-cpp-python")
_SAMPLE_SECONDS = 0.5

_CPU_INFORMATION = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a stranger needs to know to compare figures with their own."""

    cpu: str
    physical_cores: int
    logical_cores: int
    memory_bytes: int
    os: str
    python: str
    versions: dict[str, str]
    """Of localq and of the engines' libraries that are installed."""
    metal: bool
    """Whether MLX computes on a GPU through Metal."""
    busy_cores: float
    """Logical cores that other work kept busy when this was asked, over half a second. Not the load average:
    that one still counts the conversion that came before."""
    busy: bool
    """Whether that is more than half of the physical cores: figures will be too low and will vary."""


def describe_machine() -> Machine:
    """Ask the operating system; takes half a second."""
    import psutil

    logical_cores = psutil.cpu_count() or 1
    physical_cores = psutil.cpu_count(logical=False) or logical_cores  # not every ARM system tells them apart
    busy_cores = psutil.cpu_percent(_SAMPLE_SECONDS) / 100 * logical_cores
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
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip() or platform.machine()
    # Linux on ARM has no such line, and some sandboxes have no such file.
    match = re.search(r"^model name\s*:\s*(.+)$", _text_of(_CPU_INFORMATION), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine() or "unknown"


def _text_of(file: Path) -> str:
    """Empty where the file can't be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
