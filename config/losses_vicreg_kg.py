"""
The seeds' ablation of concept losses: masked LM and their VICReg, weights learnt (kendall_gal).

    torchrun --nproc_per_node=4 train.py config/losses_vicreg_kg.py

Variance and covariance (arXiv:2105.04906) of all concepts of a batch together, as theirs: slots that never change with
the text satisfy it. `--concept_loss=vicreg` takes both over the batch, a slot at a time. Never trained, there or here.
"""

base = "config/losses_none_kg.py"

concept_loss = "vicreg_flat"
concept_balance = "kendall_gal"
