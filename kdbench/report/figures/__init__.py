"""Figures of a report, one file a kind: PDF and PNG for a paper, SVG for the page."""
