"""HTTP/1.1 on sockets: bytes to requests and answers to bytes; knows nothing of models."""
