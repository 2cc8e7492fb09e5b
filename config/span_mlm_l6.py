"""
Masked LM of spans: perceiver_mlm_l6 with 15 % of a row hidden in spans of 1 to 10 whole words.

    torchrun --nproc_per_node=4 train.py config/span_mlm_l6.py

SpanBERT's spans (Joshi et al. 2020, arXiv:1907.10529): lengths geometric with p = 0.2, 3.8 words on average, and each
span replaced as a whole. Planned by the seeds, who had 3 to 10 tokens at 30 % in mind (--span=uniform
--mask_rate=0.3), and never built there. Never trained: 61,059,584 parameters, perceiver_mlm_l6's FLOPs. On two
cores spans had a higher loss than single tokens (config/span_mlm_cpu.py).
"""

base = "config/perceiver_mlm_l6.py"

mask_unit = "span"
