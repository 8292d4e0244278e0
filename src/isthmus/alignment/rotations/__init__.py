"""Units that may be rotated as well as renumbered: found in the program, solved for, and applied."""
