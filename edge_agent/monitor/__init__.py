"""What a device learns about its models and itself: counts, latency, samples, labels, health."""
