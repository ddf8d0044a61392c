"""Shoal on the device: serves models, watches their data, reports, and updates itself."""

__version__ = "0.1.0"
