"""All pictures and tables. Only this file imports matplotlib, and only when a picture is drawn.

A number aggregated over seeds is a tuple (median, low, high), a number with an interval a dict {"value", "low",
"high"}; a lift is such a dict with "verdict" and, for the best floor, "floor". Values are 0-1, and printed x100.
"""

import base64
import re
import statistics
from collections.abc import Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

from lab.command import optional
from lab.files import replacing

FLOORS = ("majority", "word_tfidf", "char_tfidf", "random_vectors", "token_idf", "token_sif", "state_idf")
FLOORS += ("token_ngrams", "overlap_features", "untrained")
LIFTS = ("best_floor", "token_idf", "untrained")
HEADLINE = "partial_lexical"  # beyond words, of centred cosines (lab/evaluation/scores.py)
HEADLINE_ADAPTED = f"{HEADLINE}_adapted"  # of adapted cosines
optional_picture = optional("a picture")  # a picture that fails is None, with a warning
DPI = 150  # of pictures


@contextmanager
def panels(path: Path, count: int, width: float, height: float, across: int = 4):
    """`count` axes of width x height inches, `across` in a row; the picture is written to `path` when the block
    ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns, rows = min(count, across), -(-count // across)
    size = columns * width, rows * height
    drawn, axes = plt.subplots(rows, columns, figsize=size, constrained_layout=True, squeeze=False)
    try:
        yield list(axes.flat[:count])
        for i, one in enumerate(axes.flat):
            one.spines[["top", "right"]].set_visible(False)
            one.set_visible(i < count)
        with replacing(path) as temporary:
            drawn.savefig(temporary, dpi=DPI, format="png")
    finally:
        plt.close(drawn)


def points(metrics: list[dict], key: str) -> tuple[list, list]:
    """Steps and values of a number in metrics.jsonl."""
    having = [record for record in metrics if key in record]
    return [record["step"] for record in having], [record[key] for record in having]


def legend(axes):
    """A legend below the axes, in one or two lines."""
    count = len(axes.get_legend_handles_labels()[1])
    columns = count if count < 4 else (count + 1) // 2
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, frameon=False, fontsize="small")


@optional_picture
def curves(metrics: list[dict], floors: dict[str, float], path: Path, unit: str = "nats"):
    """Records of metrics.jsonl -> curves.png: losses over steps by length and kind, and the loss added by another row's
    concepts; nothing if there are none. floors: key -> the loss of guessing without the text, a dashed line."""
    keys = dict.fromkeys(key for record in metrics for key in record if key.startswith("val_loss_"))
    lengths = [key for key in keys if key[9:].isdigit()]
    longest = max(lengths, key=lambda key: int(key[9:]), default="")
    wanted = {  # of lengths, only the longest has its floor drawn: that of others is nearly the same
        "loss": (lengths, [longest]),
        "loss by kind, longest rows": ([key for key in keys if key not in lengths], keys),
        "loss added by another row's concepts": (["delta_shuffle"] if points(metrics, "delta_shuffle")[0] else [], ()),
    }
    trained = points(metrics, "loss")
    wanted = {title: panel for title, panel in wanted.items() if panel[0] or (title == "loss" and trained[0])}
    if not wanted:
        return
    with panels(path, len(wanted), 5.5, 4.4) as every:
        for axes, (title, (drawn, bounded)) in zip(every, wanted.items(), strict=True):
            axes.set(xlabel="step", ylabel=f"{unit} per scored token" if unit == "nats" else unit, title=title)
            if title == "loss" and trained[0]:
                axes.plot(*trained, label="training", color="0.75", lw=1)
            for i, key in enumerate(drawn):
                name = key.removeprefix("val_loss_")
                axes.plot(*points(metrics, key), label=f"validation, {name}", marker=".", color=f"C{i}")
                if key in bounded and key in floors:
                    axes.axhline(floors[key], label=f"floor, {name}", ls="--", lw=1, color=f"C{i}")
            if "delta_shuffle" in drawn:
                axes.axhline(0, color="0.75", lw=1)
                axes.set(ylabel="nats")
            else:
                legend(axes)


GEOMETRY = {"rank_slot_centred": "slot-centred rank", "rank_pooled": "rank of pooled concepts"}
GEOMETRY |= {"input_share": "input share (of the variance)"}


@optional_picture
def geometry_curves(metrics: list[dict], most: dict[str, float], beyond: dict[str, tuple[int, float]], path: Path):
    """Records of metrics.jsonl -> geometry.png: ranks and input share over steps, with the largest possible values
    `most`. beyond: task -> (step, score beyond words on dev). Nothing if there are none."""
    there = {key: label for key, label in GEOMETRY.items() if points(metrics, key)[0]}
    if not there:
        return
    with panels(path, len(there) + bool(beyond), 4, 3.8) as every:
        for axes, (key, label) in zip(every, there.items(), strict=False):
            steps, values = points(metrics, key)
            axes.plot(steps, values, marker=".")
            axes.axhline(most[key], label=f"largest possible: {most[key]:g}", ls="--", lw=1, color="0.5")
            axes.set(xlabel="step", title=label, ylim=(0, 1.05 * most[key]))
            legend(axes)
        for task, (step, value) in beyond.items():
            every[-1].plot(step, 100 * value, "o", label=task)
        if beyond:
            every[-1].axhline(0, color="0.75", lw=1)
            every[-1].set(xlabel="step", title="beyond words, dev, x100", xlim=every[0].get_xlim())
            legend(every[-1])


@optional_picture
def weight_curves(metrics: list[dict], path: Path):
    """Records of metrics.jsonl -> weights.png: weights of the task and of each concept loss over steps, beside
    kendall_gal's closed form 1/(2L), dashed (of what is above 0); and the norms of their gradients at the concepts.
    Nothing if there is no concept loss."""
    keys = dict.fromkeys(key for record in metrics for key in record if key.startswith("concept_weight_"))
    names = [key.removeprefix("concept_weight_") for key in keys]
    if not names:
        return
    learnt = any(weight != 1 for weight in points(metrics, "concept_weight_task")[1])
    with panels(path, 2, 5.5, 4.4) as every:
        for i, name in enumerate(names):
            steps, values = points(metrics, "loss" if name == "task" else f"concept_loss_{name}")
            closed = [(step, 1 / (2 * value)) for step, value in zip(steps, values, strict=True) if value > 0]
            every[0].plot(*points(metrics, f"concept_weight_{name}"), label=name, color=f"C{i}")
            if closed and learnt:
                every[0].plot(*zip(*closed, strict=True), label=f"1/(2L), {name}", color=f"C{i}", ls="--", lw=0.8)
            norm = "grad_task" if name == "task" else f"grad_concept_{name}"
            every[1].plot(*points(metrics, norm), label=name, color=f"C{i}")
        for axes, title in zip(every, ("weight", "norm of the weighted gradient at the concepts"), strict=True):
            axes.set(xlabel="step", title=title)
            axes.set_yscale("symlog", linthresh=1e-6)
            legend(axes)


@optional_picture
def sweep_figure(lines: dict[str, list[tuple[float, float]]], path: Path):
    """name -> points (MFLOP per token, score x100) of one model with several options; "NAME, untrained" is dotted."""
    tasks = list(dict.fromkeys(name.partition(",")[0] for name in lines))
    with panels(path, 1, 6, 4) as (axes,):
        for name, points in lines.items():
            task, _, untrained = name.partition(",")
            style = {"ls": ":", "lw": 1} if untrained else {"marker": "."}
            axes.plot(*zip(*sorted(points), strict=True), color=f"C{tasks.index(task)}", label=name, **style)
        axes.set(xlabel="MFLOP a token, encoding", ylabel="score x100", title="quality against cost, dev")
        axes.legend(frameon=False, fontsize="small")


def dodge(places: list[float]) -> list[float]:
    """Positions on an axis from 0, with overlapping ones moved side by side."""
    step = 0.015 * max(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    moved, group = list(places), []
    for i in [*order, None]:
        if group and (i is None or places[i] - places[group[-1]] > step):
            middle = statistics.mean(places[j] for j in group)
            for k, j in enumerate(group):
                moved[j] = middle + step * (k - (len(group) - 1) / 2)
            group = []
        group.append(i)
    return moved


def colours_of(names) -> dict:
    """A colour for each name."""
    from matplotlib import colormaps

    some = colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo"]
    return {name: some(i) if len(names) <= 20 else some(i / len(names)) for i, name in enumerate(names)}


@optional_picture
def cost_figure(arms: dict[str, list[list[tuple]]], label: str, path: Path) -> Path:
    """
    Values against training FLOPs and seconds. arms: name -> for each seed its points (FLOPs, seconds, value); an empty
    arm keeps its colour, so that colours agree in all pictures of a grid. One thin line per seed; if no run has more
    than one point, the median of the seeds with a bar from the least to the greatest.
    """
    from matplotlib.ticker import EngFormatter

    colours = colours_of(arms)
    arms = {arm: runs for arm, runs in arms.items() if runs}
    curves = any(len(run) > 1 for runs in arms.values() for run in runs)
    with panels(path, 2, 5.2, 3, across=1) as every:
        for i, (axes, unit) in enumerate(zip(every, ("training FLOPs", "seconds of training"), strict=True)):
            places = dodge([statistics.median(run[-1][i] for run in runs) for runs in arms.values()])
            for (arm, runs), place in zip(arms.items(), places, strict=True):
                for values in (list(zip(*run, strict=True)) for run in runs if curves):
                    axes.plot(values[i], values[2], color=colours[arm], lw=0.9, marker=".", ms=3)
                if not curves:
                    middle, low, high = over_seeds([run[-1][2] for run in runs])
                    ends = [[middle - low], [high - middle]]
                    axes.errorbar(place, middle, ends, fmt="o", ms=4, capsize=2, color=colours[arm])
            if not curves:
                axes.axhline(0, color="0.75", lw=1, zorder=0)
            axes.set(xlabel=unit, xlim=(0, None), title="" if i else label)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        handles = [every[0].plot([], [], color=colours[arm], lw=3)[0] for arm in arms]
        where = {"loc": "outside lower center", "ncols": max(1, 60 // (6 + max(map(len, arms))))}
        every[0].figure.legend(handles, list(arms), frameon=False, fontsize="small", **where)
    return path


@optional_picture
def length_figure(
    panels_of: dict[str, tuple[dict, dict]], path: Path, scale: str = "linear", xlabel: str = "tokens"
) -> Path:
    """Values against the length of rows, or another `xlabel`. panels_of: label of a panel -> (name -> points (tokens,
    value), floors in the same form, dotted); a name has one colour in all panels. scale: of the values, "linear" or
    "log"."""
    greys = "0.7", "0.4"
    colours = colours_of(dict.fromkeys(name for lines, _ in panels_of.values() for name in lines))
    with panels(path, len(panels_of), 3.6, 2.8, across=3) as every:
        for axes, (label, (lines, floors)) in zip(every, panels_of.items(), strict=True):
            for name, own in lines.items():
                axes.plot(*zip(*own, strict=True), marker=".", color=colours[name])
            for own, grey in zip(floors.values(), greys, strict=False):
                axes.plot(*zip(*own, strict=True), ls=":", color=grey)
            axes.set(title=label, xlabel=xlabel, xscale="log", yscale=scale)
            places = sorted({x for own in lines.values() for x, _ in own})
            axes.set_xticks(places, [f"{x:g}" for x in places], rotation=90 if len(places) > 4 else 0)
            axes.minorticks_off()
        drawn = [(name, {"color": colour, "lw": 3}) for name, colour in colours.items()]
        known = dict.fromkeys(name for _, floors in panels_of.values() for name in floors)
        drawn += [(name, {"color": grey, "ls": ":"}) for name, grey in zip(known, greys, strict=False)]
        handles, names = [every[0].plot([], [], **style)[0] for _, style in drawn], [name for name, _ in drawn]
        across = int(33 * min(3, len(panels_of)) / (6 + max(map(len, names))))
        where = {"loc": "outside lower center", "ncols": max(1, across)}
        every[0].figure.legend(handles, names, frameon=False, fontsize="small", **where)
    return path


@optional_picture
def forest(groups: dict[tuple[str, str], dict[str, dict]], label: str, path: Path) -> Path:
    """(task, metric) -> arm -> {"value", "low", "high", "verdict"}: a panel per group, a point with its interval per
    arm; blue: better, red: worse, grey: undecided."""
    most = max(map(len, groups.values()))
    with panels(path, len(groups), 5.8, 0.9 + 0.24 * most, across=1) as every:
        for axes, (group, rows) in zip(every, groups.items(), strict=True):
            axes.sharex(every[0]) if axes is not every[0] else None
            for i, lift in enumerate(rows.values()):
                middle, low, high = (100 * lift[key] for key in ("value", "low", "high"))
                color = {"better": "tab:blue", "worse": "tab:red"}.get(lift["verdict"], "0.5")
                axes.errorbar(middle, i, xerr=[[middle - low], [high - middle]], fmt="o", ms=5, capsize=3, color=color)
            axes.axvline(0, color="0.5", lw=1, zorder=0)
            axes.set(title=" ".join(group), yticks=range(len(rows)), yticklabels=rows, ylim=(most - 0.5, -0.5))
        every[-1].set_xlabel(label)
    return path


@optional_picture
def lines(curves: dict[str, tuple[Sequence, Sequence]], xlabel: str, ylabel: str, path: Path) -> Path:
    """name -> (x, y): a line per name."""
    with panels(path, 1, 5.4, 3) as (axes,):
        for name, (places, values) in curves.items():
            axes.plot(places, values, marker=".", label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(min(0, *(min(values) for _, values in curves.values())), None))
        axes.legend(frameon=False)
    return path


@optional_picture
def heatmaps(matrices, path: Path, limits=(-1, 1), colours="RdBu_r", what="mean cosine", **labels) -> Path:
    """name -> matrix (of cosines): a heat map per name. what: the values are; labels: of the axes."""
    labels = labels or {"xlabel": "concept", "ylabel": "concept"}
    with panels(path, len(matrices), 2.7, 2.4, across=2) as every:
        for axes, (name, values) in zip(every, matrices.items(), strict=True):
            image = axes.imshow(values, vmin=limits[0], vmax=limits[1], cmap=colours, aspect="auto")
            axes.set(title=name, **labels)
        axes.figure.colorbar(image, ax=every, label=what)
    return path


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; floats have three decimals, columns of numbers are right-aligned."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    side = [">" if all(isinstance(row[i], (int, float)) for row in rows) else "<" for i in range(len(header))]
    width = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]

    def line(row):
        return "| " + " | ".join(f"{c:{s}{w}}" for c, s, w in zip(row, side, width, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if s == ">" else "-") for s, w in zip(side, width, strict=True)) + "|"
    return "\n".join([line(header), rule, *map(line, cells)])


def keys_of(rows: list[dict]) -> list[str]:
    """The keys of all rows, in order of first occurrence."""
    return list(dict.fromkeys(key for row in rows for key in row))


def columns(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, cells): a column for each key."""
    keys = keys_of(rows)
    return keys, [[cell(row.get(key)) for key in keys] for row in rows]


def dict_table(rows: list[dict]) -> str:
    """The `columns` in Markdown."""
    header, cells = columns(rows)
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in cells]
    return table(header, escaped) if rows else "none"


def cell(value) -> str:
    """A table cell: a number over seeds, with an interval, a lift, another number, or text."""
    if value is None or value == "":
        return "-"
    if isinstance(value, tuple):
        return format_range(value)
    if isinstance(value, dict):
        return lift_text(value) if "verdict" in value else interval(value, ".1f")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_range(values: Sequence, form: str = ".1f", scale: float = 100) -> str:
    """(median, low, high) -> "median (low..high)", or "median" if there is no range or all print alike."""
    middle, *ends = (format(scale * value, form) for value in values)
    return f"{middle} ({'..'.join(ends)})" if set(ends) - {middle} else middle


def interval(lift: dict, form: str = "+.1f", scale: float = 100) -> str:
    value, low, high = (format(scale * lift[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def lift_text(lift: dict, form: str = "+.1f", scale: float = 100) -> str:
    floor = f" ({lift['floor']})" if "floor" in lift else ""
    return f"{interval(lift, form, scale)} {lift['verdict']}{floor}"


def over_seeds(values: list) -> tuple | dict:
    """Numbers -> (median, minimum, maximum). Intervals -> their median value with the lowest low and the highest high,
    so that "above floor" holds only if it holds for all seeds."""
    if not isinstance(values[0], dict):
        return statistics.median(values), min(values), max(values)
    low, high = min(lift["low"] for lift in values), max(lift["high"] for lift in values)
    merged = {**values[0], "value": statistics.median(lift["value"] for lift in values), "low": low, "high": high}
    return merged | ({"verdict": "above floor" if low > 0 else "at floor"} if "verdict" in merged else {})


def score_rows(task: str, seeds: list[dict], lifts: dict[str, str], **lead) -> list[dict]:
    """A row {**lead, task, split, metric, score, each floor, over each floor} for every split and metric of a task.
    seeds: "splits" of each seed's record; lifts: metric -> key of its lift in it."""
    rows = []
    for split, first in seeds[0].items() if seeds else ():
        same = [splits[split] for splits in seeds]
        for metric in first["metrics"]:
            row = {**lead, "task": task, "split": split, "metric": metric}
            beyond = [one.get("beyond", one.get("intervals", {})).get(metric) for one in same]
            row["score"] = over_seeds(beyond if all(beyond) else [one["metrics"][metric] for one in same])
            for floor in FLOORS:  # they do not depend on the seed of training
                value = first["floors"].get(floor, {}).get(metric)
                ends = first.get(f"{floor}_range", {}).get(metric, ())
                row[floor] = None if value is None else (value, *ends)
            for floor in LIFTS:
                over = [one.get(lifts.get(metric), {}).get(floor) for one in same]
                row[f"over {floor}"] = over_seeds(over) if all(over) else None
            rows.append(row)
    return rows


def verdicts(rows: list[dict]) -> dict[str, str]:
    """Rows of `score_rows` -> {"arm task split": a sentence}: the last lift over the best floor (adapted, if there is
    one), and the score beyond words."""
    verdicts = {}
    for row in rows:
        name = " ".join(row[key] for key in ("arm", "task", "split") if key in row)
        lift = row["over best_floor"]
        if isinstance(row["score"], dict) and row["metric"] in (HEADLINE, HEADLINE_ADAPTED) and lift:
            verdicts[name] = verdicts[name].partition("; beyond")[0]
            floor = f", token_idf {fraction(row['token_idf'][0])}" if row["token_idf"] else ""
            low, high = fraction(row["score"]["low"]), fraction(row["score"]["high"])
            verdicts[name] += f"; beyond words {fraction(row['score']['value'])} [{low}, {high}]{floor}"
        elif lift:
            how, by, sign = ("above", " by", 1) if lift["low"] > 0 else ("not above", ":", 1)
            if lift["high"] < 0:
                how, by, sign = "below", " by", -1
            low, high = sorted(100 * sign * lift[key] for key in ("low", "high"))
            verdicts[name] = f"{how} {lift['floor']}{by} {100 * sign * lift['value']:.1f} [{low:.1f}, {high:.1f}]"
            if row.get("majority"):
                verdicts[name] += f"; always the commonest class: {100 * row['majority'][0]:.1f}"
    return verdicts


def fraction(value: float) -> str:
    """0.237 -> ".24"."""
    return f"{value:z.2f}".replace("0.", ".")  # z: no -.00


def drop_empty_columns(rows: list[dict]) -> list[dict]:
    """Rows of `score_rows` without the columns of floors that are empty in all rows."""
    empty = {key for key in FLOORS if all(row[key] is None for row in rows)}
    return [{key: value for key, value in row.items() if key not in empty} for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Sections: (title, rows of a table, notes under it), as text and as HTML


def sections_text(sections: list[tuple[str, list[dict], list[str]]]) -> str:
    """Sections in Markdown; several notes become a list."""
    blocks = []
    for title, rows, notes in sections:
        blocks += [f"## {title}"] if title else []
        blocks += [dict_table(rows), "\n".join(f"* {note}" for note in notes) if len(notes) > 1 else "".join(notes)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def sections_html(sections: list[tuple[str, list[dict], list[str]]]) -> list[str]:
    parts = []
    for title, rows, notes in sections:
        parts += [heading(title)] if title else []
        parts += [html_table(*columns(rows)), paragraphs(notes)]
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Pages: one self-contained HTML file

STYLE = """body{font:16px/1.45 sans-serif;max-width:72rem;margin:auto;padding:1rem;color:#222;overflow-wrap:anywhere}
p,details{max-width:48rem}h1{font-size:1.3rem}h2{font-size:1.15rem;margin-top:2rem}h3{font-size:1rem}small{color:#666}
.verdict{font-size:1.1rem;border-left:.3rem solid #2a7;padding-left:.7rem}.wrong{color:#c00;border-color:#c00}
table,.picture{overflow-x:auto;max-width:100%;margin:.5rem 1rem .5rem 0}summary{cursor:pointer}img{display:block}
table{display:block;border-collapse:collapse;overflow-wrap:normal}.text{white-space:pre-wrap}img{max-width:100%}
td,th{border-bottom:1px solid #ddd;padding:.25rem .6rem;text-align:left;vertical-align:top;font-size:.9rem}
.long{min-width:14rem;overflow-wrap:anywhere}.picture{display:inline-block;vertical-align:top}
@media(max-width:40rem){.long{min-width:9rem}.cards td,.cards th{border:0}
.cards tr,.cards td{display:block;overflow-wrap:anywhere}
.cards th{display:none}.cards tr{border-bottom:2px solid #bbb}.cards td:before{content:attr(data-of)": ";color:#666}}"""


class Html(str):
    """Text that is HTML already and is not escaped."""

    def __str__(self):
        return self


def marked(pieces: Sequence[tuple[str, bool]]) -> Html:
    """[(text, whether it is wrong)] -> HTML in which wrong text is red."""
    return Html("".join(f"<span class=wrong>{escape(x)}</span>" if wrong else escape(x) for x, wrong in pieces))


def page(title: str, said: list[tuple[str, bool]], about: str, parts: list[str]) -> str:
    """said: [(sentence, whether it is good)], at the top; about: small print below; parts: HTML."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    first = [f"<p class='verdict{'' if good else ' wrong'}'>{escape(text)}</p>" for text, good in said]
    body = f"<h1>{escape(title)}</h1>{''.join(first)}<p><small>{escape(about)}</small></p>{''.join(parts)}"
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """On narrow screens a wide table becomes one card per row, with a line per cell."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    sizes = [len(name) for name in header]
    for row in rows:
        lines.append("")
        for i, cell in enumerate(row):
            size = len(re.sub("<.*?>", "", str(cell)))
            sizes[i] = max(sizes[i], min(20, size))
            text = cell if isinstance(cell, Html) else escape(str(cell))
            lines[-1] += f"<td data-of='{escape(header[i])}'{' class=long' * (size > 24)}>{text}</td>"
    return f"<table{' class=cards' * (sum(sizes) > 45)}>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def shaded(tokens: list[str], lines: list[tuple[str, list[float]]]) -> str:
    """A line of tokens for each (name, weights), shaded by weight; the weight is shown on hover."""
    rows = []
    for name, weights in lines:
        top = max(max(weights), 1e-9)
        spans = (
            f"<span title='{w:.3f}' style='background:rgba(31,119,180,{w / top:.2f})'>{escape(token)}</span>"
            for token, w in zip(tokens, weights, strict=True)
        )
        rows.append(f"<tr><th>{escape(name)}</th><td class=text>{''.join(spans)}</td></tr>")
    return f"<table class=picture>{''.join(rows)}</table>"


# Sorts a table's rows by the clicked column, and on the next click in reverse; cells that begin with a number as
# numbers.
SORTING = """<style>th{cursor:pointer}</style><script>
for (const table of document.querySelectorAll("table")) [...table.rows[0].cells].forEach((head, i) => {
  let sign = -1
  head.tabIndex = 0
  head.onkeydown = event => event.key == "Enter" && head.click()
  head.onclick = () => {
    sign = -sign
    const rows = [...table.rows].slice(1).map(row => [row, row.cells[i].textContent])
    for (const row of rows) row.push(Number(row[1].split(" ")[0]))
    rows.sort(([, s, x], [, t, y]) => isFinite(x) && isFinite(y) ? sign * (x - y || s.localeCompare(t))
      : isFinite(x) ? -1 : isFinite(y) ? 1 : sign * s.localeCompare(t, undefined, {numeric: true}))
    table.tBodies[0].append(...rows.map(row => row[0]))
  }
})
</script>"""


def picture(path: Path | None) -> str:
    """An image at its drawn size; on narrow screens shrunk to 60 % at most, then scrollable."""
    if path is None:
        return paragraphs(["This picture could not be made."])
    data = path.read_bytes()
    width = int.from_bytes(data[16:20], "big") * 96 // DPI  # where PNG keeps its width
    style, source = f"width:{width}px;min-width:{0.6 * width:.0f}px", base64.b64encode(data).decode()
    return (
        f"<div class=picture><img alt='{escape(path.stem)}' style='{style}' src='data:image/png;base64,{source}'></div>"
    )
