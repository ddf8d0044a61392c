"""The commands of ``shoal`` that talk to a server over its REST API."""
