"""
How much to delete, and do survivors keep their places? (E9) TSDAE at four rates, closed up or in place; masked spans.

Predicted, after TSDAE (Wang et al. 2021, arXiv:2104.06979: 0.6): 0.6 is best where survivors close up; after SpanBERT
(arXiv:1907.10529): masked spans are worth a point over masked tokens. Survivors in place tell the decoder where the
gaps are: lower losses, worse similarity. Twenty runs, two to three minutes of one thread each by estimate.

    python compare.py config/grids/deletion.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/objectives.py"  # spectral tokens, H 128, rows of 16 and 32 tokens, 4.5 TFLOP, two seeds

arms = {
    "compact_60": {"delete_rate": 0.6},
    "compact_30": {"delete_rate": 0.3},
    "compact_45": {"delete_rate": 0.45},
    "compact_75": {"delete_rate": 0.75},
    "original_30": {"delete_rate": 0.3, "positions": "original"},
    "original_45": {"delete_rate": 0.45, "positions": "original"},
    "original_60": {"delete_rate": 0.6, "positions": "original"},
    "original_75": {"delete_rate": 0.75, "positions": "original"},
    "mlm_tokens": {"objective": "mlm", "mask_rate": 0.3, "visible_only": True},
    "mlm_spans": {"objective": "mlm", "mask_rate": 0.3, "visible_only": True, "mask_unit": "span"},
}

objective = "tsdae"
