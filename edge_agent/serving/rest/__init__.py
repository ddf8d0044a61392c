"""The routes of the local API; knows nothing of sockets."""
