"""
Slots that compete for the tokens, on two cores: config/concepts_cpu.py with another encoder.

Slot attention, Locatello et al. 2020, arXiv:2006.15055. Never trained at this size (H 256). At H 128, in the grid of
encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two seeds): STS-B dev 71.6 and 71.8, SICK dev 66.8 and 66.2; with
--gru=True 70.7 and 70.6, 68.3 and 67.9. The perceiver there: 72.2 and 72.4, 69.2 and 68.5.

    python train.py config/slot_cpu.py                    # Python's docstrings
    python train.py config/slot_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "slot"
