"""
Find rows of a CSV that say the same:

    python examples/csv_duplicates.py out/quickstart products.csv description 0.95

Writes products.duplicates.csv: the same rows with two columns more, `duplicate_of` (the number of the first earlier
row, counted from 1, whose text has at least this cosine; empty where there is none) and `cosine`.
"""

import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # not needed after `pip install -e .`
import nanoconcept  # noqa: E402

BLOCK = 1000  # rows whose cosines are in memory at a time


def main(run: str, path: str, column: str, least: str = "0.95"):
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [*csv.DictReader(file)]
    if not rows or column not in rows[0]:
        sys.exit(f"{path} has no column {column!r}; it has: {', '.join(rows[0]) if rows else 'no row'}")
    vectors = nanoconcept.load(run).encode([row[column] for row in rows], normalize_embeddings=True)
    found = 0
    for start in range(0, len(rows), BLOCK):
        cosines = np.tril(vectors[start : start + BLOCK] @ vectors.T, start - 1)  # earlier rows alone
        for row, cosine in zip(rows[start:], cosines, strict=False):
            first = int(np.argmax(cosine >= float(least)))
            same = cosine[first] >= float(least)
            row["duplicate_of"], row["cosine"] = (first + 1, f"{cosine[first]:.3f}") if same else ("", "")
            found += same
    to = Path(path).with_suffix(".duplicates.csv")
    with open(to, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(f"{to}: {found} of {len(rows)} rows are duplicates")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
