"""Training: the Lightning loop, the engines that run it."""
