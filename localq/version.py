"""The version of localq, one string for packaging, manifests and `localq --version`; and of its libraries."""

from __future__ import annotations

from collections.abc import Iterable

__version__ = "0.1.0"


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of localq and of those of the named packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"localq": __version__}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
