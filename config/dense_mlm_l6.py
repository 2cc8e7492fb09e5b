"""
Masked LM with a plain Transformer of six layers whose tokens are pooled to 128 concepts: the control.

    torchrun --nproc_per_node=4 train.py config/dense_mlm_l6.py

Vaswani et al. 2017, arXiv:1706.03762, with rotary positions (arXiv:2104.09864); ours, not the original project's. Never
trained at this size: 56,534,016 parameters, 2.2 times perceiver_mlm_l6's FLOPs a token in training.
"""

base = "config/perceiver_mlm_l6.py"

encoder = "dense"
original_structure = False
vocab_size = 0
token_position = "rope"
