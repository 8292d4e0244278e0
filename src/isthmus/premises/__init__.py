"""What theorems ask of a network."""
