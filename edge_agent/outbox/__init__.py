"""The durable queue: what the device has to say waits here until the server says that it has it."""
