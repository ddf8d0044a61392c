"""New recipes: a folder that trains as it is, to be changed step by step into one's own."""
