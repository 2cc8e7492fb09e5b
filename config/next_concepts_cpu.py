"""
Next-concept prediction beside TSDAE and a bag of words, on two cores: what a text says tells what the next one says.

From the concepts of a span a small predictor foretells those that the same encoder makes of the document's next span
(LCM, Barrault et al. 2024, arXiv:2412.08821, by regression; no gradient at the target, as in SimSiam,
arXiv:2011.10566). `--next_target=spectral` foretells the mean of its frozen token vectors. The weight is 2 because at
the start the gradient of 1 - cosine is about a tenth of that of a loss in nats. Never trained at this size: there is no
number to expect. A loss near 0 with a falling pooled rank is a collapse.

    python train.py config/next_concepts_cpu.py                    # Python's docstrings
    python train.py config/next_concepts_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

objective = "tsdae + bow + 2*nextconcept"
