"""``shoal demo``: a whole fleet on one machine, whose world changes and which mends itself."""
