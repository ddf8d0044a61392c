"""Runs models: packages on disk, backends, self-test, slots with hot swap."""
