from __future__ import annotations

from typing import Any

from ._stored import Stored

GOLDEN = [
    Stored(
        "ickd",
        student={"last": "student_map"},
        teacher={"last": "teacher_map_double"},
        state={"embed_s.conv2d.": "student_embed.0.", "embed_s.l2norm.": "student_embed.1."},
    ),
    Stored("ickd_torchdistill", {"embed": False, "reduction": "n_squared"}, {"last": "student_map"}, {"last": "teacher_map_same_channels"}),
]
FURTHER: list[dict[str, Any]] = []
