"""Devices: what each should be, what it says it is, and what happened to it."""
