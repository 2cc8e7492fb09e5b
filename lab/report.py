"""Pictures and tables. matplotlib is imported by nothing else, and only when a picture is drawn."""

from pathlib import Path


def curves(metrics: list[dict], path: Path):
    """metrics.jsonl's records -> curves.png: losses over steps, and what the concepts add to them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    training = [record for record in metrics if "loss" in record]
    evaluations = [record for record in metrics if "val_loss" in record]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    if training:
        left.plot([r["step"] for r in training], [r["loss"] for r in training], color="0.75", lw=1, label="training")
    for name in sorted({key for r in evaluations for key in r if key.startswith("val_loss_")}, key=natural):
        points = [(r["step"], r[name]) for r in evaluations if name in r]
        left.plot(*zip(*points, strict=True), marker=".", label=f"validation, {name[9:]}")
    left.set(xlabel="step", ylabel="nats per scored token", title="loss")
    points = [(r["step"], r["delta_shuffle"]) for r in evaluations if "delta_shuffle" in r]
    if points:
        right.plot(*zip(*points, strict=True), marker=".", color="tab:red")
    right.axhline(0, color="0.75", lw=1)
    right.set(xlabel="step", ylabel="nats", title="loss added by another row's concepts")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if left.get_legend_handles_labels()[1]:
        left.legend(frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=100)
    plt.close(figure)
    temporary.replace(path)


def natural(name: str):
    """Sort key that puts rows of 16 before rows of 128."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split("_")]


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; numbers are printed with three decimals and flushed right."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    width = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]

    def line(row):
        pairs = zip(row, width, numeric, strict=True)
        return "| " + " | ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in pairs) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(width, numeric, strict=True)) + "|"
    return "\n".join([line(header), rule, *map(line, cells)])
