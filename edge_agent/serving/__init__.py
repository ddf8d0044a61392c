"""The local API: the Open Inference Protocol v2 over HTTP, and feedback."""
