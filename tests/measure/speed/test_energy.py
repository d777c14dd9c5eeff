from __future__ import annotations

from pathlib import Path

import pytest

from localq.measure.speed.energy import EnergyMeter


def _zone(powercap: Path, number: str, name: str, microjoules: int, limit: int = 1_000_000) -> Path:
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_the_energy_of_all_packages_is_added_up(tmp_path: Path) -> None:
    first, second = _zone(tmp_path, "0", "package-0", 100), _zone(tmp_path, "1", "package-1", 7)
    meter = EnergyMeter(tmp_path)
    first.write_text("600100\n")
    second.write_text("150007\n")
    assert meter.joules() == pytest.approx(0.75)


def test_a_counter_may_begin_anew(tmp_path: Path) -> None:
    counter = _zone(tmp_path, "0", "package-0", 900_000, limit=999_999)
    meter = EnergyMeter(tmp_path)
    counter.write_text("100000\n")
    assert meter.joules() == pytest.approx(0.2)


def test_parts_of_a_package_and_the_whole_machine_do_not_count(tmp_path: Path) -> None:
    package = _zone(tmp_path, "0", "package-0", 0)
    others = [_zone(tmp_path, number, name, 0) for number, name in (("0:0", "core"), ("0:1", "dram"), ("1", "psys"))]
    meter = EnergyMeter(tmp_path)
    for counter in (package, *others):
        counter.write_text("500000\n")
    assert meter.joules() == pytest.approx(0.5)


@pytest.mark.parametrize("content", [None, "", "many\n"])
def test_a_counter_that_cannot_be_read_gives_no_energy(content: str | None, tmp_path: Path) -> None:
    counter = _zone(tmp_path, "0", "package-0", 0)
    meter = EnergyMeter(tmp_path)
    if content is None:
        counter.unlink()
    else:
        counter.write_text(content)
    assert meter.joules() is None


def test_one_package_of_two_is_not_taken_for_all(tmp_path: Path) -> None:
    _zone(tmp_path, "0", "package-0", 0)
    _zone(tmp_path, "1", "package-1", 0).unlink()
    assert EnergyMeter(tmp_path).joules() is None


def test_a_machine_without_counters_gives_no_energy(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    assert EnergyMeter(tmp_path / "none").joules() is None
