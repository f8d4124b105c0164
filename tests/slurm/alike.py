"""`python tests/slurm/alike.py RESULTS OTHER SUITE`: whether two runs of a suite left the same results, and print the same tables. Where
the second has fewer repeats, those are compared: a cell is the same cell however many there are."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

from kdbench.manifest import Manifest
from kdbench.report.write import report
from kdbench.store import Store


def tables(store: Store, suite: str, manifest: Manifest) -> str:
    """What a report of the manifest's cells prints, without costs: they are measured, and differ between two measurements."""
    own = store.manifest(suite)
    store.put_manifest(suite, replace(manifest, profiles=()))
    output = io.StringIO()
    report(store, [suite], output)
    store.put_manifest(suite, own)
    return "".join(line for line in output.getvalue().splitlines(keepends=True) if not line.startswith("All tables, with notes, are in "))


def main() -> int:
    one, other = (Store(Path(folder)) for folder in sys.argv[1:3])
    suite = sys.argv[3]
    manifest = other.manifest(suite)
    ids = [row.id for row in manifest.cells]
    differing = []
    for cell_id in ids:
        mine, its = one.record(cell_id), other.record(cell_id)
        if mine is None or its is None or mine.result != its.result:
            differing.append(cell_id)
    print(f"{suite}: {len(ids) - len(differing)} of {len(ids)} cells have the same result in {one.root} and {other.root}")
    same = tables(one, suite, manifest) == tables(other, suite, manifest)
    print(f"{suite}: the tables are {'the same' if same else 'different'}")
    return 1 if differing or not same else 0


if __name__ == "__main__":
    sys.exit(main())
