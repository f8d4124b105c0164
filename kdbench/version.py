"""The version of the package, on the lowest floor."""

VERSION = "0.2.0"
