"""
Masked diffusion by its evidence bound and a bag of words on two cores; the encoder reads the clean row.

MDLM (Sahoo et al. 2024, arXiv:2406.07524) and LLaDA (Nie et al. 2025, arXiv:2502.09992) in mirrored pairs of rows, with
a decoder that sees four tokens to either side of what is left, and the concepts. Copying is enough here: six layers of
the original project's that did so had an STS-B of 0.17. `--diffusion_source=next` takes the concepts of the span before
instead. Never trained at this size; diffusion alone, at width 128 and 4.5 TFLOP (docs/LOG.md), had 63.9 on STS-B dev
(untrained 60.9) and 62.9 on SICK dev.

    python train.py config/diffusion_elbo_cpu.py                    # Python's docstrings
    python train.py config/diffusion_elbo_cpu.py --dataset=wiki     # text you have prepared
    python sample.py --run=out/diffusion_elbo_cpu --mode=unmask --text="Return the [MASK] of items in the list."
"""

base = "config/concepts_cpu.py"

objective = "diffusion + bow"
bow_source = "row"
decoder = "diffusion"
decoder_window = 4
