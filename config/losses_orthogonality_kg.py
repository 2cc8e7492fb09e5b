"""
The seeds' ablation of concept losses: masked LM and orthogonality of the concepts, weights learnt (kendall_gal).

    torchrun --nproc_per_node=4 train.py config/losses_orthogonality_kg.py

Kendall et al. 2018, arXiv:1705.07115: at its optimum a loss L weighs 1/(2L), the task about 0.12. Never trained, there
or here; losses_combined_kg is what they trained. 128 concepts of width 512 can all be orthogonal.
"""

base = "config/losses_none_kg.py"

concept_loss = "orthogonality"
concept_balance = "kendall_gal"
