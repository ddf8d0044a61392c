"""The device's connection to its server: MQTT 3.1.1, the twin, and the streams of the outbox."""
