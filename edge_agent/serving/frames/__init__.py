"""Length-prefixed msgpack on a unix socket, for applications that count microseconds."""
