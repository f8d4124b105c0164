"""Words of the command line that lower layers use, too."""

PROVIDERS = ("live", "table")
"""Where the outputs of a teacher come from: it is run at each step, or read from a table where one can serve the bundle. No result depends
on it."""
