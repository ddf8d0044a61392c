"""Clients that are not ours, unchanged, against a real agent."""
