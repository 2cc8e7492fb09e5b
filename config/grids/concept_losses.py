"""
Does any concept loss raise quality, or rank alone? The log's best objective with each at 5 % of its gradient, on the
concepts of a text and on texts, two seeds, two to three minutes of one thread a run.

    python data/text/prepare.py --name=wiki --lowercase --files wiki_*.txt.xz --tokenizer=bpe:16384
    python compare.py config/grids/concept_losses.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/objectives.py"  # all but the arms

arms = {
    "none": {},
    "orthogonality_slots": {"concept_loss": "orthogonality"},
    "vicreg": {"concept_loss": "vicreg"},
    "tregs_slots": {"concept_loss": "tregs"},
    "tregs_samples": {"concept_loss": "tregs", "concept_loss_axis": "samples"},
    "kendall_gal": {"concept_loss": "vicreg", "concept_balance": "kendall_gal"},
}
