"""Statistics over columns: a frame in, a frame out. Nothing here reads a file or knows what was trained."""
