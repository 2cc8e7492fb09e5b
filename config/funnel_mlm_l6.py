"""
Masked LM with tokens pooled in two stages to 128 ordered concepts.

    torchrun --nproc_per_node=4 train.py config/funnel_mlm_l6.py

As Funnel-Transformer pools, Dai et al. 2020, arXiv:2006.03236. Never trained at this size: 64,072,704 parameters.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "funnel"
original_structure = False
vocab_size = 0
concept_position = "rope"
