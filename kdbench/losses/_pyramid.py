"""The levels of two feature pyramids, paired by stride, and other maps by the same names. Not a loss."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from kdbench.losses._base import Pair, Taps
from kdbench.losses._stagewise import unmatched

Map = Float[Tensor, "n _ _ _"]
Pairs = dict[str, tuple[Map, Map]]

ADVICE = {"levels": "; give both pyramids one width, or use fgd, mgd, mimic or reviewkd_fpn, which learn a map of channels"}


def check_levels(levels: Sequence[int] | None) -> None:
    """Raises ValueError for what is no choice of levels."""
    if levels is not None and (not levels or min(levels) < 0 or list(levels) != sorted({*levels})):
        raise ValueError(f"levels are places among those that both models have, finest first and counted from 0, not {list(levels)}")


def level_name(stride: int) -> str:
    """As detectors name their levels: P3 has a position for 8 x 8 pixels."""
    power = stride.bit_length() - 1
    return f"P{power}" if stride == 2**power else f"stride {stride}"


def compared(student: Taps, teacher: Taps, tap: str, levels: Sequence[int] | None = None) -> Pairs:
    """The maps of a tap, student's and teacher's, by name: of `levels` and `dense_logits` those of equal stride, finest first, or the ones
    at these places among them; of another tap the last map, or the stages one by one."""
    sides = [value if isinstance(value := getattr(side, tap), tuple) else (value,) for side in (student, teacher)]
    if tap in ("levels", "dense_logits"):
        theirs = dict(zip(teacher.strides, sides[1], strict=True))
        common = [(level_name(one), (x, theirs[one])) for one, x in zip(student.strides, sides[0], strict=True) if one in theirs]
        return dict(common if levels is None else [common[place] for place in levels])
    return {"the last map" if tap == "last" else f"stage {place}": pair for place, pair in enumerate(zip(*sides, strict=True))}


def unpaired(pair: Pair, tap: str, levels: Sequence[int] | None = None, learnt: bool = False, any_size: bool = False) -> str | None:
    """Why the maps of a tap cannot be compared one by one, if they cannot. `learnt`: by a map of channels, which may differ then."""
    if tap in ("levels", "dense_logits"):
        strides = [side.strides for side in (pair.student, pair.teacher)]
        names = [level_name(one) for one in strides[0] if one in strides[1]]
        if not names:
            own, other = (", ".join(map(str, one)) or "unknown" for one in strides)
            return f"it compares levels of equal stride, and those of the student are {own}, those of the teacher {other}"
        if levels is not None and max(levels) >= len(names):
            return f"`levels` has the place {max(levels)}, counted from 0, and both models have {len(names)} in common: {', '.join(names)}"
    elif (why := unmatched(pair, tap)) is not None:
        return why
    for name, (x, y) in compared(pair.student, pair.teacher, tap, levels).items():
        if x.shape[2:] != y.shape[2:] and not any_size:
            own, other = ("x".join(map(str, one.shape[2:])) for one in (x, y))
            return f"it needs maps of equal size: at {name} the student's is {own}, the teacher's {other}"
        if x.shape[1] != y.shape[1] and not learnt:
            what = "logits at a position (anchors times classes)" if tap == "dense_logits" else "channels"
            return f"it needs equal {what}: at {name} the student has {x.shape[1]}, the teacher {y.shape[1]}{ADVICE.get(tap, '')}"
    return None


def aligned(pairs: Pairs) -> nn.ModuleList:
    """Of each pair a 1x1 convolution to the teacher's channels, or nothing where they are equal."""
    widths = [(x.shape[1], y.shape[1]) for x, y in pairs.values()]
    return nn.ModuleList(nn.Identity() if own == other else nn.Conv2d(own, other, 1) for own, other in widths)
