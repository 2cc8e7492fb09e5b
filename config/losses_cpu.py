"""
Concepts that a minimum spanning tree pushes apart, on two cores: config/concepts_cpu.py with a concept loss.

T-REGS (Mordacq et al. 2025, arXiv:2510.23484) on the texts of a batch, its gradient 5 % of the task's in every step.
Other arms: --concept_loss=vicreg, uniformity, orthogonality, --concept_loss_axis=slots, --concept_share=0.02, and
--concept_balance=kendall_gal for how the seeds muted their task (weights.png in the run folder). Never trained at this
size; at width 128 and 4.5 TFLOP (docs/LOG.md) 70.9 and 71.5 on STS-B dev, 66.8 and 67.0 on SICK dev; 70.9, 71.0 and
67.3, 67.3 without it, and 71.4, 71.9 and 67.1, 67.2 with vicreg.

    python train.py config/losses_cpu.py                    # Python's docstrings
    python train.py config/losses_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

concept_loss = "tregs"
concept_loss_axis = "samples"
concept_balance = "gradient_share"
concept_share = 0.05
