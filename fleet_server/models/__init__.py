"""Models: the released packages, their evaluation, and which of them is the champion."""
