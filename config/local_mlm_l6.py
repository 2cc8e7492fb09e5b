"""
Masked LM in which tokens know their neighbours before they are read: one layer of windowed self-attention.

    torchrun --nproc_per_node=4 train.py config/local_mlm_l6.py

The window is Longformer's, Beltagy et al. 2020, arXiv:2004.05150. Never trained at this size: 40,537,472 parameters. On
two cores such a layer gained nothing (docs/LOG.md).
"""

base = "config/perceiver_mlm_l6.py"

original_structure = False
vocab_size = 0
token_dim = 128
token_layers = 1
token_window = 16
