"""Signed updates: what may be installed, the download, and an installer that can be killed at any moment."""
