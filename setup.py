"""The one part of the build that pyproject.toml can't say: compiled kernels, which localq also works without."""

import platform
import sysconfig

from setuptools import Extension, setup

# Float operations must stay as they are written: none fused, none reordered. -march=native would end in pip's cache.
FLAGS = ["-O2", "-ffp-contract=off", "-fno-fast-math", "-fwrapv", "-Wno-psabi"]
WIDTHS = {4: []}
if platform.machine().lower() in ("x86_64", "amd64") and "arm64" not in sysconfig.get_platform():
    WIDTHS |= {8: ["-mavx2"], 16: ["-mavx512f"]}


def kernels(source: str, lanes: int, flags: list[str]) -> Extension:
    """A C file for vectors of so many floats: a plain shared library, opened with ctypes. No compiler, no library."""
    return Extension(
        f"localq.conversion._{source}_{lanes}",
        [f"localq/conversion/{source}.c"],
        depends=["localq/conversion/vectors.h"],
        define_macros=[("LANES", str(lanes))],
        extra_compile_args=[*FLAGS, *flags],
        optional=True,
    )


SOURCES = ("kquants", "mlx_search")
setup(ext_modules=[kernels(source, lanes, flags) for source in SOURCES for lanes, flags in WIDTHS.items()])
