"""Linear networks: paths in a level set."""
