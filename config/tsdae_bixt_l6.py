"""
TSDAE with BiXT: tokens and concepts read each other through one matrix of similarities, tokens of width 128.

    torchrun --nproc_per_node=8 train.py config/tsdae_bixt_l6.py

The paper's layer (Hiller et al. 2024, arXiv:2402.12138), in the place of what the original project planned (two_way in
config/grids/tsdae_l6.py).
Never trained at this size: 61,709,696 parameters.
"""

base = "config/tsdae_l6.py"

encoder = "bixt"
original_structure = False
vocab_size = 0
tied = True
token_dim = 128
heads = 16  # of width 32
