"""
Masked LM with tokens pooled in two stages to 128 ordered concepts.

    torchrun --nproc_per_node=4 train.py config/funnel_mlm_l6.py

Never trained at this size.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "funnel"
seeds_faithful = False
concept_position = "rope"
