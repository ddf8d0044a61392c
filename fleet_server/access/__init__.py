"""Who may do what: roles of people and programs, one-time claims, and the secrets of devices."""
