"""
The smallest grid: does a comparison run at all? Two inits, two seeds, twenty steps each, under a minute on two cores
once the embedded corpus is there. It needs no task files, and says nothing about the inits.

    python compare.py config/grids/smoke.py
"""

base = "config/quickstart.py"

arms = {
    "fan_in": {"init": "fan_in"},
    "gpt2": {"init": "gpt2"},
}
seeds = (0, 1)
tasks = ""

token_init = "random"
hidden = 64
intermediate = 64
max_steps = 20
warmup = 5
log_interval = 10
eval_tokens = 2048
final_report = "losses"
