"""What devices may install: the image repository, signed elsewhere and checked here, and the director, which signs."""
