"""Rows to learn from: the lake, dataset versions, base rows."""
