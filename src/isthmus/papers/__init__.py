"""The published experiments: one folder per paper, with everything of it."""
