"""
Masked LM with one read of the tokens and six layers of latents.

    torchrun --nproc_per_node=4 train.py config/perceiver_io_mlm_l6.py

Perceiver IO, Jaegle et al. 2022, arXiv:2107.14795. Never trained at this size: 59,942,400 parameters.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "perceiver_io"
original_structure = False
vocab_size = 0
