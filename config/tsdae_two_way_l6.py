"""
TSDAE with two-way layers: in each the tokens also read the concepts. What the seeds called BiXT.

    torchrun --nproc_per_node=8 train.py config/tsdae_two_way_l6.py

Never trained, here or there: 92,106,240 parameters (untied), the seeds' less the last reverse attention, which got no
gradient.
"""

base = "config/tsdae_l6.py"

encoder = "two_way"
