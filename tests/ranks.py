"""Ranks inside a test: forks of it, which meet on the loopback interface."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import torch

from kdbench.train.ranks import Ranks, Together

CPU = torch.device("cpu")


def in_ranks(world: int, act: Callable[[Ranks], Any], timeout_s: float = 120.0) -> list[Any]:
    """What `act` gives on each rank. Raises AssertionError with the traceback of a rank that raises, or does not end."""
    context = multiprocessing.get_context("fork")
    ports = context.Queue()
    pipes = [context.Pipe(duplex=False) for _ in range(world)]

    def run(rank: int) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        try:
            if rank:
                ranks = Together.joining(rank, world, CPU, "127.0.0.1", ports.get())
            else:
                ranks = Together.first_of(
                    world, CPU, "127.0.0.1", lambda port: [ports.put(port) for _ in range(1, world)] and None, lambda: None
                )
            found = True, act(ranks)
            ranks.any(False)  # all have ended
        except BaseException:
            found = False, traceback.format_exc()
        pipes[rank][1].send_bytes(pickle.dumps(found))  # tensors whole, and not through shared memory
        pipes[rank][1].close()
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    found = [pickle.loads(pipe.recv_bytes()) if pipe.poll(timeout_s) else (False, "no answer") for pipe, _ in pipes]
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
    assert all(well for well, _ in found), "\n".join(f"rank {rank}: {said}" for rank, (well, said) in enumerate(found) if not well)
    return [said for _, said in found]


def in_worker(arguments: list[str], before: Callable[[], None] = lambda: None, timeout_s: float = 120.0) -> int | None:
    """The exit status of a worker that is a fork of this process, in which `before` is called first; None if it does not end."""
    from kdbench.train import worker

    def run() -> None:
        status = 1
        try:
            before()
            status = worker.main(arguments)
        except BaseException:
            traceback.print_exc()
        os._exit(status)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        return None
    return process.exitcode
