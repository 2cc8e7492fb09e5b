"""
Search your notes, a text a line:

    python examples/search_notes.py out/quickstart notes.txt "what did the doctor say"

Prints the ten nearest by the meaning that the run has learnt, and beside each its place by words alone (TF-IDF): where
both agree, you did not need the run. (`python embed.py --query=...` does the same for files of any size.)
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # not needed after `pip install -e .`
import nanoconcept  # noqa: E402
from nanoconcept.lab.evaluation.search import tfidf_ranks  # noqa: E402


def main(run: str, notes: str, *queries: str):
    texts = [line for line in Path(notes).read_text(encoding="utf-8").splitlines() if line.strip()]
    model = nanoconcept.load(run)
    vectors = model.embed(texts, adapt_to=texts)  # less what all of your notes have in common
    asked = model.embed(list(queries), adapt_to=texts)
    vectors, asked = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (vectors, asked))
    ranks = tfidf_ranks(texts, list(queries))
    for query, cosines, places in zip(queries, asked @ vectors.T, ranks, strict=True):
        print(query)
        for i in np.argsort(-cosines, kind="stable")[:10]:
            print(f"  {cosines[i]:.2f}  by words: {places[i] or '-':>4}  {texts[i][:90]}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
