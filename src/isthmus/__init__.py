"""Connect trained networks by low-loss paths: construct, measure, prove."""
