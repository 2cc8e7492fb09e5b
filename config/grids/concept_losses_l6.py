"""
The original project's ablation of concept losses whose weights are learnt: its other arms beside losses_combined_kg.

Kendall et al. 2018, arXiv:1705.07115: at the optimum of the learnt weights a loss L weighs 1/(2L). Planned there, never
trained, there or here. Their VICReg takes variance and covariance (arXiv:2105.04906) of all concepts of a batch
together, which slots that never change with the text satisfy.

    python compare.py config/grids/concept_losses_l6.py     # one arm on each GPU
"""

base = "config/losses_combined_kg.py"

arms = {
    "none": {"concept_loss": "", "concept_balance": "gradient_share"},
    "combined": {},
    "orthogonality": {"concept_loss": "orthogonality"},
    "vicreg": {"concept_loss": "vicreg_flat"},
}
