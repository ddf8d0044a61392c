"""The part of Shoal that runs a fleet: devices, models, rollouts, ingest, monitoring, console."""
