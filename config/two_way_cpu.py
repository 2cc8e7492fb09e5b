"""
Tokens and concepts read each other in turn, on two cores: config/concepts_cpu.py with another encoder.

The seeds' two-way layers (they called them BiXT), with norms that theirs lack. Never trained at this size (H 256), nor
by the seeds. At H 128, in the grid of encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two seeds): STS-B dev 71.9
and 71.7, SICK dev 67.4 and 67.2. The perceiver there: 72.2 and 72.4, 69.2 and 68.5.

    python train.py config/two_way_cpu.py                    # Python's docstrings
    python train.py config/two_way_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "two_way"
