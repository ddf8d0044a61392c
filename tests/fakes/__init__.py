"""Small real parts that many tests need, and fakes of our protocols."""
