"""Takes what devices say into the database, each message with effect exactly once."""
