"""
Masked LM of spans for two cores: perceiver_mlm_cpu with its 30 % hidden in spans of 1 to 10 whole words.

SpanBERT's spans (Joshi et al. 2020, arXiv:1907.10529): lengths geometric with p = 0.2, 3.8 words on average. Never
trained at this size; at 40 %, read without [MASK]s, width 128 and 4.5 TFLOP (docs/LOG.md) the loss was 8.25 (tokens
8.09), STS-B dev 58.5 (61.5), SICK dev 58.7 (63.9). In rows of 16 and 32 tokens the budget is one or two spans, of
which one is cut.

    python train.py config/span_mlm_cpu.py                    # Python's docstrings
    python train.py config/span_mlm_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/perceiver_mlm_cpu.py"

mask_unit = "span"
