"""
The best similarity for the least compute, on two cores in four minutes: a bag of words alone, and no decoder.

The concepts of the whole row predict its words, each counting by its idf (docs/LOG.md: at 4.5 TFLOP and width 128 the
best objective but for one that predicts the next span's words, too). It decodes no text; its vectors carry about as
much order as those of tsdae + bow (docs/RESULTS.md). Expect, on 200 MB of lower-cased Wikipedia with bpe:16384 (one
seed, Pearson of centred cosines): STS-B dev 78.0, test 71.5, SICK dev 69.4, test 67.8; character TF-IDF: 77.9, 71.1,
64.7, 62.6.

    python train.py config/embed_cpu.py                    # Python's docstrings
    python train.py config/embed_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

objective = "bow"
bow_source = "row"
whitening = 0.0
max_steps = 5000
