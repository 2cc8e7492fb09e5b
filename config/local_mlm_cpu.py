"""
Masked LM for two cores in which tokens know their neighbours before they are read, by one layer that sees a window.

The window is Longformer's, Beltagy et al. 2020, arXiv:2004.05150. It gained nothing: in the grid local_tokens
(docs/LOG.md: this size, Wikipedia, 9 TFLOP, one seed) 6.93 nats, STS-B dev 56.8, SICK dev 63.0, and without the layer
6.89, 60.5, 62.4 (unigram floor 7.37).

    python train.py config/local_mlm_cpu.py                    # Python's docstrings
    python train.py config/local_mlm_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/perceiver_mlm_cpu.py"

token_layers = 1
