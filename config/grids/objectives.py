"""
Which objective? Every family with the perceiver and spectral tokens at equal FLOPs, two seeds, two to three minutes of
one thread a run.

    python data/text/prepare.py --name=wiki --lowercase --files wiki_*.txt.xz --tokenizer=bpe:16384
    python compare.py config/grids/objectives.py --data=DIR     # DIR holds STS-B/ and SICK/
"""

base = "config/grids/encoders.py"  # its base, tasks, seeds, data and width

arms = {
    "tsdae_bow": {},
    "tsdae": {"objective": "tsdae"},
    "tsdae_words": {"objective": "tsdae", "delete_unit": "word"},
    "tsdae_causal": {"objective": "tsdae", "decoder": "causal", "score_rate": 1.0},
    "mlm": {"objective": "mlm", "visible_only": True, "mask_rate": 0.4},
    "mlm_words": {"objective": "mlm", "visible_only": True, "mask_rate": 0.4, "mask_unit": "word"},
    "mlm_spans": {"objective": "mlm", "visible_only": True, "mask_rate": 0.4, "mask_unit": "span"},
    "retromae": {
        "objective": "mlm",
        "encoder_mask_rate": 0.15,
        "mask_rate": 0.6,
        "decoder": "diffusion",
        "decoder_window": 8,
    },
    "diffusion": {"objective": "diffusion", "decoder": "diffusion"},
    "prefix": {"objective": "prefix"},
    "prefix_next": {"objective": "prefix", "prefix_source": "next"},
    "bow": {"objective": "bow", "bow_source": "row"},
    "bow_next": {"objective": "bow", "bow_source": "row", "bow_target": "next"},
    "bow_both": {"objective": "bow", "bow_source": "row", "bow_target": "both"},
    "contrastive": {"objective": "contrastive"},
    "tsdae_bow_contrastive": {"objective": "tsdae + bow + 0.1*contrastive"},
    "next_concepts": {"objective": "tsdae + bow + 2*nextconcept"},
    "next_spectral": {"objective": "tsdae + bow + 2*nextconcept", "next_target": "spectral"},
}

eval_interval = 0
max_flops = 4.5e12
