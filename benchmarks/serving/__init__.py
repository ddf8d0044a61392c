"""What serving costs: Shoal beside other servers, each alone on one core, asked from another; docs/benchmarks.md."""
