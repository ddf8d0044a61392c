"""Who answers the parts of a batch: this machine, or a Ray cluster."""
