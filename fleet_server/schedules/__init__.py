"""When training runs are due, and who carries them out."""
