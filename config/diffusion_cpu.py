"""
The decoder of masked diffusion for two cores, in which positions see their neighbours, under masked LM.

    python train.py config/diffusion_cpu.py                                   # Python's docstrings
    python train.py config/diffusion_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

objective = "mlm + bow"
visible_only = True
mask_rate = 0.4
bow_source = "row"
decoder = "diffusion"
decoder_window = 4
