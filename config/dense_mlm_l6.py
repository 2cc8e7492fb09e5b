"""
Masked LM with a plain Transformer of six layers whose tokens are pooled to 128 concepts: the control.

    torchrun --nproc_per_node=4 train.py config/dense_mlm_l6.py

Never trained at this size.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "dense"
seeds_faithful = False
token_position = "rope"
