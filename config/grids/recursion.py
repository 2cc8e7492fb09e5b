"""
One shared layer for six? (E7) Six layers of their own, one layer six times, and two to ten times at random.

Predicted, after ALBERT (arXiv:1909.11942) and Geiping et al. 2025 (arXiv:2502.05171): sharing costs one to three
points; random depths go on to improve to about 1.5 times their mean of 6, then stay; a fixed depth is worse at any
other. Eight runs, about three minutes of one thread each by estimate; then depth by depth, for the shared arms:

    python compare.py config/grids/recursion.py --data=DIR     # DIR holds STS-B/ and SICK/
    python eval_glue.py --run=out/compare/recursion/random_2_10_s0 --tasks=stsb --iterations=2,4,6,9,12 --data=DIR
"""

base = "config/grids/encoders.py"  # tsdae + bow, spectral tokens, H 128, rows of 16 and 32 tokens, 9 TFLOP, two seeds

arms = {
    "own_6": {"layers": 6},
    "shared_6": {"encoder": "recursive", "iterations": 6},
    "random_2_10": {"encoder": "recursive", "iterations": 10, "min_iterations": 2},
    "last_2_learn": {"encoder": "recursive", "iterations": 6, "backprop_iterations": 2},
}
