"""What makes one version of a file of another: weights travel as small whole numbers; the form is docs/updates.md."""
