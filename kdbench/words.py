"""Words of the command line that lower layers use, too."""

PROVIDERS = ("auto", "live", "table")
"""Where the outputs of teachers come from: they are run at each step, or read from a table where one can serve the bundle; `auto` chooses
for each teacher. No result depends on it."""
