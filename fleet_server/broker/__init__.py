"""The MQTT broker that the server starts itself, so that a fleet needs nothing installed."""
