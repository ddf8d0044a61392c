"""Batch inference: a model answers a whole dataset, on the runtime that devices use."""
