"""
Masked LM with dimension inversion: tokens of width 64, concepts of width 1024, and a tied head that is factorised.

    torchrun --nproc_per_node=4 train.py config/inversion_t64_h1024.py

One of the sizes that the original project planned and never trained; there the head stayed whole, and the model larger
than with wide tokens. Here the head is factorised as ALBERT's embedding (Lan et al. 2019, arXiv:1909.11942):
134,875,200 parameters. Never trained at this size.
"""

base = "config/perceiver_mlm_l6.py"

original_structure = False
vocab_size = 0
token_dim = 64
hidden = 1024
heads = 16
intermediate = 4096
