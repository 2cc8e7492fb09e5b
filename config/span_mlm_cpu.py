"""
Masked LM of spans for two cores: perceiver_mlm_cpu with its 30 % hidden in spans of 1 to 10 whole words.

SpanBERT's spans (Joshi et al. 2020, arXiv:1907.10529): lengths geometric with p = 0.2, 3.8 words on average. Never
trained. Expect a loss above perceiver_mlm_cpu's, as a span's own words tell nothing of each other; `val_loss_mlm15` and
the scores compare. In rows of 16 and 32 tokens the budget is one or two spans, of which one is cut.

    python train.py config/span_mlm_cpu.py                                   # Python's docstrings
    python train.py config/span_mlm_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/perceiver_mlm_cpu.py"

mask_unit = "span"
