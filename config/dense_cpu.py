"""
A plain Transformer whose tokens are pooled, on two cores: the control for every other encoder.

Vaswani et al. 2017, arXiv:1706.03762, with rotary positions (arXiv:2104.09864); one read of C queries pools. Never
trained at this size (H 256). At H 128, in the grid of encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two
seeds): STS-B dev 71.1 and 70.4, SICK dev 67.5 and 67.7, and the worst TSDAE loss. The perceiver there: 72.2 and 72.4,
69.2 and 68.5.

    python train.py config/dense_cpu.py                    # Python's docstrings
    python train.py config/dense_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "dense"
token_position = "rope"
