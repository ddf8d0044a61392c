"""Whether the fleet's models still see what they were made for, and still answer right."""
