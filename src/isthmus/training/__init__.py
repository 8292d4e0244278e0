"""The one training loop, and the state that survives a kill."""
