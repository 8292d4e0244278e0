"""Questions about networks and paths whose answer is no path of a method."""
