"""The part of Shoal that runs a fleet: devices, models, rollouts, ingest, monitoring, console."""

__version__ = "0.1.0"
