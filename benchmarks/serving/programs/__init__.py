"""Programs that run in a server's own environment, or as a process of their own."""
