"""`python tests/slurm/alike.py RESULTS RESULTS SUITE`: whether two runs of a suite left the same results, and print the same tables."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from kdbench.report.write import report
from kdbench.store import Store


def tables(store: Store, suite: str) -> str:
    """What a report prints, without costs: they are measured, and differ between two measurements."""
    manifest = store.manifest(suite)
    store.put_manifest(suite, {**manifest, "profiles": []})
    told = io.StringIO()
    report(store, [suite], told)
    store.put_manifest(suite, manifest)
    return told.getvalue()


def main() -> int:
    one, other = (Store(Path(folder)) for folder in sys.argv[1:3])
    suite = sys.argv[3]
    ids = [row["id"] for row in one.manifest(suite)["cells"]]
    differing = []
    for cell_id in ids:
        mine, its = one.record(cell_id), other.record(cell_id)
        if mine is None or its is None or mine.result != its.result:
            differing.append(cell_id)
    print(f"{suite}: {len(ids) - len(differing)} of {len(ids)} cells have the same result in {one.root} and {other.root}")
    same = tables(one, suite) == tables(other, suite)
    print(f"{suite}: the tables are {'the same' if same else 'different'}")
    return 1 if differing or not same else 0


if __name__ == "__main__":
    sys.exit(main())
