"""
TSDAE with nested concepts: one run for every number of concepts (--concepts=1, 2, 4 ... 128 later).

    torchrun --nproc_per_node=8 train.py config/tsdae_nested_l6.py

Never trained at this size.
"""

base = "config/tsdae_l6.py"

nested = True
