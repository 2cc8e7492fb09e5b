"""
Tokens pooled in two stages to ordered concepts, on two cores: config/concepts_cpu.py with another encoder.

As Funnel-Transformer pools, Dai et al. 2020, arXiv:2006.03236. Never trained at this size (H 256). At H 128, in the
grid of encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two seeds): STS-B dev 71.2 and 71.8, SICK dev 66.6 and
65.5, and the best TSDAE loss. The perceiver there: 72.2 and 72.4, 69.2 and 68.5.

    python train.py config/funnel_cpu.py                    # Python's docstrings
    python train.py config/funnel_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "funnel"
concept_position = "rope"
