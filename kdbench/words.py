"""Words of the command line that lower layers use, too."""

PROVIDERS = ("auto", "live", "table")
"""Where the outputs of a teacher come from: no result depends on it. `auto` is a table where one can serve the bundle."""
