"""
Masked LM from few, short spans to many, long ones: span_mlm_l6 with 15 % hidden at first and 40 % at last.

    torchrun --nproc_per_node=4 train.py config/span_curriculum_l6.py

The seeds' curriculum (their B2, planned, not built), from 15 % in short spans to 40 % in long ones, in six parts of
training. That as many may be hidden all along is Wettig et al. 2023, arXiv:2202.08005; whether it helps to begin with
less is open. Judged at the last rate, so its val_loss compares with no other run's; val_loss_mlm15 does. Never trained:
61,059,584 parameters.
"""

base = "config/span_mlm_l6.py"

mask_rate = (0.15, 0.40)
max_span = (1, 10)
