"""
Concepts that a minimum spanning tree pushes apart, on two cores: config/concepts_cpu.py with a concept loss.

T-REGS (Mordacq et al. 2025, arXiv:2510.23484) on the texts of a batch, its gradient 5 % of the task's in every step.
Other arms: --concept_loss=vicreg, uniformity, orthogonality, --concept_loss_axis=slots, --concept_share=0.02, and
--concept_balance=kendall_gal for how the seeds muted their task (weights.png in the run folder). Never trained at this
size; without the concept loss see config/concepts_cpu.py.

    python train.py config/losses_cpu.py                                   # Python's docstrings
    python train.py config/losses_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

concept_loss = "tregs"
concept_loss_axis = "samples"
concept_balance = "gradient_share"
concept_share = 0.05
