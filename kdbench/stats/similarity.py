"""Similarity of trained networks by layer, over repeats."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from kdbench.stats.repeats import BLOCK, summarise

KINDS = ("stage", "last", "pooled", "logits")
"""The first words of the names of layers, in the order of a network."""


def layer_order(names: Iterable[str]) -> list[str]:
    """The names of layers from the first to the last, each once: `stage 2` is before `stage 10`. Other names come last."""
    places = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(set(names), key=lambda name: (places.get(name.partition(" ")[0], len(KINDS)), len(name), name))


def by_layer(cka: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of each objective's similarity to the teacher, layer by layer.

    Args:
        cka: dataset, teacher, student, id, student_layer, paired (above 0: the layers belong together), cka; a row a run, teacher and two
            layers. A run with several teachers of a block counts with their mean.
        runs: dataset, teacher, student, objective, repeat, teacher_seed, id: every run a row a block, also those without similarities.

    Returns:
        layer (of the student), dataset, teacher, student, objective, n, n_asked, mean, sd, as `summarise` makes them, layer by layer in
        the order of `cka`; without the layers that an objective's networks do not have.
    """
    keys = [*BLOCK, "id", "student_layer"]
    values = cka[cka["paired"] > 0].groupby(keys, sort=False)["cka"].mean().reset_index(name="value")
    runs, names = runs[[*BLOCK, "objective", "repeat", "teacher_seed", "id"]], [*BLOCK, "objective"]
    values = values.merge(runs[[*names, "id"]], on=[*BLOCK, "id"])
    unmeasured = runs[~pd.MultiIndex.from_frame(runs[names]).isin(pd.MultiIndex.from_frame(values[names]))]
    found = []
    for layer, mine in values.groupby("student_layer", sort=False):
        having = pd.concat([runs.merge(mine[names].drop_duplicates(), on=names), unmeasured.merge(mine[[*BLOCK]].drop_duplicates())])
        found.append(summarise(having.merge(mine, on=[*names, "id"], how="left")).assign(layer=layer))
    return pd.concat(found, ignore_index=True)
