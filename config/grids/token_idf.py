"""
Passing token_idf, the idf-weighted mean of untrained token embeddings: variants of the bag of words, with the FLOPs of
first.py, judged without training on STS-B and SICK-R. About 40 minutes on two cores.

    python data/text/prepare.py --name=wiki --files wiki_*.txt.xz --tokenizer=bpe:8192
    python data/text/prepare.py --name=wiki_lower --lowercase --files wiki_*.txt.xz --tokenizer=bpe:8192
    python compare.py config/grids/token_idf.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/first.py"

arms = {
    "bow": {"objective": "bow"},
    "bow_lower": {"objective": "bow", "dataset": "wiki_lower"},
    "bow_contrastive": {"objective": "bow + 0.3*contrastive", "views": "deletion"},
    "bow_tsdae_low": {
        "objective": "0.3*tsdae + bow",
        "positions": "compact",
        "delete_rate": 0.6,
        "token_weight": "idf",
        "score_rate": 0.25,
    },
}
