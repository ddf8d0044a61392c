"""Runs: executed as processes, claimed from the fleet server by a worker."""
