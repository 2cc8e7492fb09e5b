"""
Nested concepts for two cores: one run for 1, 2, 4 and 8 concepts (--concepts=2 later).

Nested dropout, Rippel et al. 2014, arXiv:1402.0915, over concepts. Never trained at this size (H 256). At H 128, in the
grid of encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two seeds): STS-B dev 72.4 and 72.4, SICK dev 67.9 and
68.0; the perceiver that is not nested: 72.2 and 72.4, 69.2 and 68.5. One concept alone (docs/LOG.md, first seed): 71.9
and 67.7.

    python train.py config/nested_cpu.py                    # Python's docstrings
    python train.py config/nested_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

nested = True
