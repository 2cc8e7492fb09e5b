"""
TSDAE with the seeds' T-REGS, at the fixed weight 0.02 that they planned.

    torchrun --nproc_per_node=8 train.py config/tsdae_l6_tregs.py

Their form is the mean distance to the nearest other concept of a text, not the minimum spanning tree of the paper
(Mordacq et al. 2025, arXiv:2510.23484); `--concept_loss=tregs` has the tree. Theirs was to stand at each layer; here it
is at the last one. Never trained, there or here. 87M parameters (untied).
"""

base = "config/tsdae_l6.py"

concept_loss = "t_regs_mst"
concept_balance = "fixed"
concept_weight = 0.02
