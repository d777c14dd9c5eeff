"""The version of localq: one string, so that packaging, manifests and `localq --version` agree."""

__version__ = "0.1.0"
