"""
The decoder of masked diffusion for two cores, in which positions see their neighbours, under masked LM.

The seeds' decoder with AdaLN-Zero (arXiv:2212.09748) and a local window, which is ours; the encoder never meets a
[MASK] (MAE-LM, Meng et al. 2023, arXiv:2302.02060). Never trained at this size. The nearest run has decoder posonly
(docs/LOG.md, "mlm, visible 60 % + bow, spectral": H 128, 9 TFLOP, three seeds): STS-B dev 72.2 to 73.7, SICK dev 67.9
to 68.4.

    python train.py config/diffusion_cpu.py                    # Python's docstrings
    python train.py config/diffusion_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

objective = "mlm + bow"
visible_only = True
mask_rate = 0.4
bow_source = "row"
decoder = "diffusion"
decoder_window = 4
