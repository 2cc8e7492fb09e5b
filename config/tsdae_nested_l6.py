"""
TSDAE with nested concepts: one run for every number of concepts (--concepts=1, 2, 4 ... 128 later).

    torchrun --nproc_per_node=8 train.py config/tsdae_nested_l6.py

Nested dropout, Rippel et al. 2014, arXiv:1402.0915, over concepts. Never trained at this size: 86,848,000 parameters.
"""

base = "config/tsdae_l6.py"

nested = True
