"""Where answers go: each kind of table takes a batch in one commit, or not at all."""
