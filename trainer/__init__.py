"""The part of Shoal that learns: dataset, fit, evaluation, export, parity, package."""
