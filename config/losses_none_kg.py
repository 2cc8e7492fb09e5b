"""
The seeds' ablation of concept losses, its arm without any: masked LM at 15 %, six layers, 20 epochs of MiniPile.

    torchrun --nproc_per_node=4 train.py config/losses_none_kg.py

Planned there as "current results", which were those of 40 epochs (perceiver_mlm_l6: MLM loss 2.537, rank 5.07 of 128,
STS-B 0.627); of 20 epochs nothing is logged. The other arms, losses_*_kg, add a loss weighed by kendall_gal.
"""

base = "config/perceiver_mlm_l6.py"

concept_loss = ""
max_steps = 39_070
