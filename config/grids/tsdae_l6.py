"""
Variants of tsdae_l6 that the original project planned, each by a key or two: for GPUs, never trained at this size.

two_way is what it called BiXT, without a token FFN; tregs its nearest-neighbour form of T-REGS (arXiv:2510.23484) at
the fixed weight 0.02; nested trains one run for 1, 2, 4 ... 128 concepts (nested dropout, arXiv:1402.0915).

    python compare.py config/grids/tsdae_l6.py     # one arm on each GPU
"""

base = "config/tsdae_l6.py"

arms = {
    "tsdae": {},
    "two_way": {"encoder": "two_way"},
    "nested": {"nested": True},
    "tregs": {"concept_loss": "t_regs_mst", "concept_balance": "fixed", "concept_weight": 0.02},
}
