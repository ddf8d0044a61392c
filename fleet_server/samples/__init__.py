"""The sample lake: rows from devices wait in the database's spool, then move into Delta tables."""
