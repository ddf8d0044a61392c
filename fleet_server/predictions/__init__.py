"""Answers of batch jobs, by key."""
