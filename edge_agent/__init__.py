"""Tectum's device side: capture, fuse, decide, deliver."""

__version__ = "0.1.0"
