"""Labels from devices: the truth about requests, for live accuracy here and for training in the lake."""
