"""What a challenger must pass before it may be released."""
