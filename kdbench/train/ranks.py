"""The processes (ranks) that train one bundle together, and all that they say to each other, through torch.distributed.

Each rank has a share of the groups of every batch (`bn_groups`), and the same weights. What must be equal is decided from what all have
said: each call here is made by all ranks, in the same order."""

from __future__ import annotations

import operator
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kdbench import failure
from kdbench.errors import RankError, RankLostError, StoppedError

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long the ranks wait for each other's words: one may evaluate a teacher alone. On the CPU one that dies is noticed at once."""
JOIN = timedelta(minutes=10)
"""How long the first rank waits for the others: on a cluster, nodes may start minutes apart."""
OF_TENSORS = timedelta(minutes=5)
"""How long tensors wait on GPUs, where a death is not noticed: the words before them have been waited for already."""
KNOCK = timedelta(seconds=60)
POLL_S = 0.05
ALIGNED = 16
"""Bytes at a multiple of which the parts of a message begin."""


class Ranks:
    """A single process, which says nothing to anybody."""

    rank, world = 0, 1

    def share(self, n_groups: int) -> range:
        """The groups of this rank, of a batch of so many."""
        return range(n_groups * self.rank // self.world, n_groups * (self.rank + 1) // self.world)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on a rank."""
        return flag

    def agreed(self, error: Exception | None) -> Exception | None:
        """The error of this rank or, where it has none, of another one: either all ranks get one, or none does."""
        return error

    def knows(self, error: Exception) -> bool:
        """Whether all ranks have an error. After another one this rank no longer does what the others do, and must end."""
        return True

    def tried(self, act: Callable[[], T]) -> T:
        """What `act` gives here. Raises its error, or that of another rank."""
        return act()

    def first(self, act: Callable[[], T]) -> T:
        """What `act` gives on the first rank, which alone calls it. Raises its error."""
        return act()

    def told(self, mine: Any) -> list[Any]:
        """What each rank says, in order."""
        return [mine]

    def gathered(self, mine: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
        """Columns of which each rank has some pieces, in order: whole on the first rank, empty on the others."""
        return {name: np.concatenate(pieces) for name, pieces in mine.items()}

    def rows(self, mine: Mapping[Hashable, Tensor], counts: Sequence[int]) -> dict[Hashable, Tensor]:
        """Tensors with a row for each image of this rank, with those of all ranks, in order. `counts`: the number of rows of each rank."""
        return {name: one.contiguous() for name, one in mine.items()}  # as they arrive from others: sums of another layout have other bits

    def total(self, vector: Tensor, exact: bool) -> Tensor:
        """The sum over the ranks; `exact`: always in the same order, that of `in_pairs`."""
        return vector

    def end(self) -> None:
        """Say no more."""

    def cut(self) -> None:
        """As `end`, after a rank was lost: the others notice it."""


ALONE = Ranks()


class Together(Ranks):
    """One of several processes. Tensors travel by NCCL where they are on GPUs; flags and messages never wait for a GPU."""

    def __init__(self, rank: int, world: int, device: torch.device, door: Any):
        self.rank, self.world, self.device = rank, world, device
        dist.init_process_group("gloo", store=door, rank=rank, world_size=world, timeout=PATIENCE)
        self.words = dist.group.WORLD
        self.tensors = self.words
        if device.type == "cuda":
            torch.cuda.set_device(device)
            self.tensors = dist.new_group(backend="nccl", timeout=OF_TENSORS)

    @classmethod
    def first_of(cls, world: int, device: torch.device, host: str, tell: Callable[[int], None], check: Callable[[], None]) -> Together:
        """The first rank: it tells the others at which port of this host it waits for them; `check` raises RankLostError when one of them
        will not come."""
        with _talking():
            door = dist.TCPStore(host, 0, world, is_master=True, wait_for_workers=False, timeout=PATIENCE)
            tell(door.port)
            until = time.monotonic() + JOIN.total_seconds()
            while not all(door.check([f"rank{rank}"]) for rank in range(1, world)):
                check()
                if time.monotonic() > until:
                    raise RankLostError(f"not all of the {world} ranks have come within {JOIN}")
                time.sleep(POLL_S)
            return cls(0, world, device, door)

    @classmethod
    def joining(cls, rank: int, world: int, device: torch.device, host: str, port: int) -> Together:
        """Another rank. Raises RankLostError."""
        with _talking():
            door = dist.TCPStore(host, port, world, is_master=False, timeout=KNOCK)
            door.set(f"rank{rank}", "here")
            return cls(rank, world, device, door)

    def any(self, flag: bool) -> bool:
        word = torch.tensor([int(flag)])
        with _talking():
            dist.all_reduce(word, dist.ReduceOp.MAX, group=self.words)
        return bool(word)

    def agreed(self, error: Exception | None) -> Exception | None:
        if isinstance(error, RankLostError):
            raise error
        if not self.any(error is not None):
            return None
        said = self.told(None if error is None else (failure.classify(error), failure.described(error), _text(error)))
        rank, (kind, message, text) = next((rank, one) for rank, one in enumerate(said) if one is not None)
        found: Any = error if rank == self.rank else RankError(f"rank {rank}: {message}", kind, text)
        found.is_agreed = True
        return found

    def knows(self, error: Exception) -> bool:
        return isinstance(error, StoppedError) or getattr(error, "is_agreed", False)

    def tried(self, act: Callable[[], T]) -> T:
        found, error = _tried(act)
        if (agreed := self.agreed(error)) is not None:
            raise agreed
        return found  # type: ignore[return-value]

    def first(self, act: Callable[[], T]) -> T:
        found, error = _tried(act) if self.rank == 0 else (None, None)
        if (agreed := self.agreed(error)) is not None:
            raise agreed
        word = [found]
        with _talking():
            dist.broadcast_object_list(word, src=0, group=self.words)
        return word[0]  # type: ignore[return-value]

    def told(self, mine: Any) -> list[Any]:
        words: list[Any] = [None] * self.world
        with _talking():
            dist.all_gather_object(words, mine, group=self.words)
        return words

    def gathered(self, mine: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
        own = super().gathered(mine)
        said: list[Any] | None = [None] * self.world if self.rank == 0 else None
        with _talking():
            dist.gather_object(own, said, dst=0, group=self.words)
        pieces = [one for one in said or () if one]  # a rank may have had no image
        return {name: np.concatenate([one[name] for one in pieces]) for name in (pieces[0] if pieces else ())}

    def rows(self, mine: Mapping[Hashable, Tensor], counts: Sequence[int]) -> dict[Hashable, Tensor]:
        if not all(counts):  # a rank without an image does not know what the others have
            shapes: Mapping[Hashable, Any] = self.told({name: (one.dtype, one.shape[1:]) for name, one in mine.items()})[0]
            mine = {
                name: mine.get(name, torch.empty(0, *shape, dtype=dtype, device=self.device)) for name, (dtype, shape) in shapes.items()
            }
        parts = [_bytes_of(one) for one in mine.values()]
        widths = [one.shape[1:].numel() * one.itemsize for one in mine.values()]
        sizes = [[_aligned(count * width) for width in widths] for count in counts]
        sent = torch.zeros(max(map(sum, sizes)), dtype=torch.uint8, device=self.device)
        for place, part in zip(_starts(sizes[self.rank]), parts, strict=True):
            sent[place : place + len(part)] = part
        held = self._all(sent)
        found = {}
        starts = [list(_starts(mine_of)) for mine_of in sizes]
        for number, (name, like) in enumerate(mine.items()):
            pieces = []
            for rank, count in enumerate(counts):
                start = starts[rank][number]
                pieces.append(held[rank][start : start + count * widths[number]].clone().view(like.dtype).view(count, *like.shape[1:]))
            found[name] = torch.cat(pieces)
        return found

    def total(self, vector: Tensor, exact: bool) -> Tensor:
        if exact:
            return in_pairs(self._all(vector).__getitem__, 0, self.world)
        with _talking():
            dist.all_reduce(vector, group=self.tensors)
        return vector

    def _all(self, mine: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which have one shape."""
        held = [torch.empty_like(mine) for _ in range(self.world)]
        with _talking():
            dist.all_gather(held, mine, group=self.tensors)
        return held

    def end(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def cut(self) -> None:
        if self.device.type != "cuda":  # there it could wait for what never comes
            self.end()


def in_pairs(part: Callable[[int], T], first: int, end: int, add: Callable[[T, T], T] = operator.add) -> T:
    """The sum of parts `first` to `end` - 1, each of which is made when its turn comes: that of the first half plus that of the second.
    So a number of ranks that is a power of two, and divides the number of parts, does not change the sum."""
    if end - first == 1:
        return part(first)
    middle = (first + end) // 2
    return add(in_pairs(part, first, middle, add), in_pairs(part, middle, end, add))


@contextmanager
def _talking() -> Iterator[None]:
    """Raises RankLostError for any error of a conversation: the other side has ended, or is cut off."""
    try:
        yield
    except RankLostError:
        raise
    except Exception as error:
        raise RankLostError(f"another rank does not answer ({type(error).__name__}: {str(error).partition(chr(10))[0]})") from error


def _tried(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except RankLostError:
        raise
    except Exception as error:
        return None, error


def _text(error: Exception) -> str:
    return error.text if isinstance(error, RankError) else "".join(traceback.format_exception(error))


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    place = 0
    for size in sizes:
        yield place
        place += size
