"""
Variants of the canonical masked LM of six layers, each by a key or two: for GPUs, never trained at this size.

Encoders: Perceiver IO (arXiv:2107.14795), slot attention (arXiv:2006.15055), Funnel (arXiv:2006.03236); tokens that
know their neighbours (Longformer's window, arXiv:2004.05150); spans (SpanBERT, arXiv:1907.10529) and a curriculum of
them; the decoder of masked diffusion; tokens narrower than concepts with a factorised head (ALBERT, arXiv:1909.11942).

    python compare.py config/grids/variants_l6.py     # one arm on each GPU
"""

base = "config/perceiver_mlm_l6.py"

arms = {
    "perceiver": {},
    "perceiver_io": {"encoder": "perceiver_io", "original_structure": False},
    "slot": {"encoder": "slot", "original_structure": False},
    "funnel": {"encoder": "funnel", "original_structure": False, "concept_position": "rope"},
    "local": {"original_structure": False, "token_dim": 128, "token_layers": 1, "token_window": 16},
    "spans": {"mask_unit": "span"},
    "spans_growing": {"mask_unit": "span", "mask_rate": (0.15, 0.40), "max_span": (1, 10)},
    "diffusion_decoder": {"decoder": "diffusion", "decoder_layers": 2, "tied": False},
    "tokens_32": {"original_structure": False, "token_dim": 32},
    "tokens_64": {"original_structure": False, "token_dim": 64},
    "tokens_128": {"original_structure": False, "token_dim": 128},
}
