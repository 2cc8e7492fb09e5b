"""
Curricula: does it help to begin with few hidden tokens, short spans or short rows? (E9's schedules; the original
project's B2.)

Predicted (the original project): from 15 % in short spans to 40 % in long ones beats both ends. Nothing measured says
so: masked LM at a constant 40 % is as good as at 15 % (Wettig et al. 2023, arXiv:2202.08005). The arms' losses are
those of other rates: compare val_loss_mlm15 and the tasks. Fourteen runs, two to three minutes of one thread each by
estimate.

    python compare.py config/grids/curricula.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/objectives.py"  # spectral tokens, H 128, rows of 16 and 32 tokens, 4.5 TFLOP, two seeds

arms = {
    "constant_40": {"mask_rate": 0.4},
    "constant_15": {"mask_rate": 0.15},
    "rising": {"mask_rate": (0.15, 0.4)},
    "falling": {"mask_rate": (0.4, 0.15)},
    "spans_40": {"mask_rate": 0.4, "mask_unit": "span"},
    "spans_growing": {"mask_rate": (0.15, 0.4), "mask_unit": "span", "max_span": (1, 10)},
    "rows_growing": {"mask_rate": 0.4, "length_mix": ((1, 0), (0, 1))},
}

objective = "mlm"
visible_only = True
