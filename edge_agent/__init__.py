"""The part of Shoal that runs on a device: serves models, watches them, reports, updates itself."""
