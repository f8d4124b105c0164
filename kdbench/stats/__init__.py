"""Statistics over columns: a frame in, a frame out. No function here reads a file."""
