"""The GPU itself: whether there is one, its memory, its streams."""
