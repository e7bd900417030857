"""Tectum's cloud side: store, show, learn, release. Of the device it imports the contract alone."""

__version__ = "0.1.0"
