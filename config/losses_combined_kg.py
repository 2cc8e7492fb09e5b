"""
The original project's run that muted its task: masked LM, variance and uniformity of the concepts, weights learnt
(kendall_gal).

    torchrun --nproc_per_node=4 train.py config/losses_combined_kg.py

Logged there (2026-02-19), 20 epochs of MiniPile: MLM loss 4.31 (2.54 in 40 epochs without), rank of the batch's mean
122.3 of 128 (5.07), STS-B 0.341 (0.627), MRPC F1 81.4, QQP F1 58.7, MNLI 48.9. At the optimum of the learnt weights
(Kendall et al. 2018, arXiv:1705.07115) a loss L weighs 1/(2L): the task 0.12, a concept loss at 0.0183 27.
"""

base = "config/perceiver_mlm_l6.py"

concept_loss = "combined"
concept_balance = "kendall_gal"
max_steps = 39_070
