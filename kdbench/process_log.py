"""The log of this process: each line is printed, and the last ones go into a failure."""

from __future__ import annotations

from collections import deque

LAST_LINES = 15
last_lines: deque[str] = deque(maxlen=LAST_LINES)


def log(line: str) -> None:
    last_lines.append(line)
    print(line, flush=True)
