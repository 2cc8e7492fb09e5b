"""
Masked LM in which tokens know their neighbours before they are read: one layer of windowed self-attention.

    torchrun --nproc_per_node=4 train.py config/local_mlm_l6.py

Never trained at this size.
"""

base = "config/perceiver_mlm_l6.py"

seeds_faithful = False
token_dim = 128
token_layers = 1
token_window = 16
