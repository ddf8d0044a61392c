"""Signing and publishing: the keys, the image repository's metadata, and its way to the server."""
