"""Rollouts: how a release reaches the fleet in waves, each behind a health gate."""
