"""Energy that the processors took, where Linux tells it: the counters of RAPL under `/sys/class/powercap`.

A package is a processor with its cores, its graphics and what is on the same chip; memory and screen are not in it, and
what the machine takes at rest is. Since 2020 only root may read the counters, unless it allowed others to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

_PACKAGE = "package-"
"""How the names of packages begin (`package-0`): other zones are parts of one, or the machine as a whole."""


@dataclass(frozen=True, slots=True)
class _Package:
    counter: Path
    range_microjoules: int
    """Where the counter begins anew."""


class EnergyMeter:
    """The energy of all packages since the meter was made."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = _packages(powercap)
        self._start = _read(self._packages)

    def joules(self) -> float | None:
        """None where no counter can be read. A counter may begin anew once; that takes it minutes at least."""
        now = _read(self._packages)
        if self._start is None or now is None:
            return None
        pairs = zip(self._packages, self._start, now, strict=True)
        return sum((end - begin) % (package.range_microjoules + 1) for package, begin, end in pairs) / 1e6


def _packages(powercap: Path) -> list[_Package]:
    packages = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # the name on AMD's processors too
        try:
            if (zone / "name").read_text().startswith(_PACKAGE):
                limit = int((zone / "max_energy_range_uj").read_text())
                packages.append(_Package(zone / "energy_uj", limit))
        except (OSError, ValueError):
            continue
    return packages


def _read(packages: list[_Package]) -> list[int] | None:
    """Microjoules of each package; None where there is none, or one that can't be read."""
    try:
        return [int(package.counter.read_text()) for package in packages] or None
    except (OSError, ValueError):
        return None
