"""An evaluation as it is read first: four rows a task, under 120 columns."""

from lab.report import HEADLINE, HEADLINE_ADAPTED, cell, dict_table

BEYOND = HEADLINE, HEADLINE_ADAPTED


def stands(lift: dict, floor: str, value: float) -> str:
    """Where a score stands to a floor whose value is given, x100: "above char_tfidf 78.1 by 2.2 [0.4, 4.1]"."""
    how = "above" if lift["low"] > 0 else "below" if lift["high"] < 0 else "level with"
    by, low, high = (100 * lift[key] for key in ("value", "low", "high"))
    if how == "below":
        by, low, high = -by, -high, -low
    said = f"{how} {floor} {100 * value:.1f}"
    return f"{said} [{low:z.1f}, {high:z.1f}]" if how == "level with" else f"{said} by {by:.1f} [{low:.1f}, {high:.1f}]"


def column(rows: list[dict]) -> dict[str, str]:
    """Rows of `report.score_rows` of one task and split -> {name of a row: what stands in it}."""
    judged = [row for row in rows if row["over best_floor"] and row["metric"] not in BEYOND]
    row = judged[-1]  # the headline: the adapted one where there is one
    best = row["over best_floor"]
    found = {
        f"{row['task']} {row['metric'].removesuffix('_adapted')}": cell(row["score"]),
        "  best floor": stands(best, best["floor"], row[best["floor"]][0]),
        "  untrained twin": stands(row["over untrained"], "it", row["untrained"][0]),
    }
    if beyond := [row for row in rows if row["metric"] in BEYOND]:
        lexical = beyond[-1]["token_idf"]
        found["  beyond words"] = cell(beyond[-1]["score"]) + (f"; token_idf {100 * lexical[0]:.1f}" if lexical else "")
    elif row.get("majority"):
        found["  commonest class"] = f"{100 * row['majority'][0]:.1f}"
    return found


def short_table(rows: list[dict]) -> str:
    """Rows of `report.score_rows` -> a table with a column for each split."""
    splits, lines = list(dict.fromkeys(row["split"] for row in rows)), []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = {split: [row for row in rows if (row["task"], row["split"]) == (task, split)] for split in splits}
        columns = {split: column(some) for split, some in own.items() if some}
        for name in dict.fromkeys(name for found in columns.values() for name in found):
            lines.append({"x100": name} | {split: columns.get(split, {}).get(name) for split in splits})
    return dict_table(lines)
