"""
Many narrow concepts or few wide ones? (E6) C times H^2 is about the same for all arms, and their FLOPs a token lie
within 40 %; the budget is equal.

Predicted, without a source: the reconstruction is best at C = N/4 to N/2 (16 and 32 of 64 tokens), STS-B is flat beyond
C = 8; nested concepts cost little. Tokens are 64 wide in every arm, so that the vocabulary head costs the same. Ten
runs, about three minutes of one thread each by estimate.

    python compare.py config/grids/concepts_width.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/encoders.py"  # tsdae + bow, spectral tokens, 9 TFLOP, two seeds

arms = {
    "c16_h128": {"concepts": 16, "hidden": 128, "intermediate": 256},
    "c4_h256": {"concepts": 4, "hidden": 256, "intermediate": 512},
    "c8_h184": {"concepts": 8, "hidden": 184, "intermediate": 368},
    "c32_h92": {"concepts": 32, "hidden": 92, "intermediate": 184},
    "c16_nested": {"concepts": 16, "hidden": 128, "intermediate": 256, "nested": True},
}

token_dim = 64
lengths = (64,)
max_length = 64
batch_size = 32  # 2,048 tokens a step
