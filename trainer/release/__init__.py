"""From a trained network to a package that devices install."""
