"""Metrics of predictions: correlations, accuracy, F1, Matthews correlation, average precision."""

import numpy as np
from scipy.stats import binomtest, rankdata


def pearson(x, y) -> float:
    """Pearson correlation of x [n] and y [n]; 0 if one is constant. ValueError for values that are not finite."""
    return float(np.mean(standardised(x) * standardised(y)))


def standardised(x):
    x = finite(x)
    deviation = x - x.mean()
    scale = np.sqrt(np.mean(deviation**2))
    return deviation / scale if scale > 1e-13 * np.abs(x).max() else np.zeros_like(x)


def spearman(x, y) -> float:
    """Pearson correlation of the ranks; ties get their mean rank."""
    return pearson(rankdata(finite(x)), rankdata(finite(y)))


def finite(x) -> np.ndarray:
    """x [n] as float64."""
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"value {np.isfinite(x).argmin()} of {len(x)} is not finite: it has no correlation")
    return x


def accuracy(predicted, labels) -> float:
    return float(np.mean(predicted == labels))


def f1(predicted, labels, positive: int = 1) -> float:
    """F1 of the class `positive`; 0 if it is neither predicted nor a label."""
    both = (predicted == positive).sum() + (labels == positive).sum()
    return float(2 * ((predicted == positive) & (labels == positive)).sum() / both) if both else 0.0


def macro_f1(predicted, labels) -> float:
    """Mean F1 over the classes that are predicted or labels."""
    return float(np.mean([f1(predicted, labels, number) for number in np.union1d(predicted, labels)]))


def mcc(predicted, labels) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 if predictions or labels are constant."""
    classes = np.union1d(predicted, labels)[:, None]
    x, y = (predicted == classes).astype(float), (labels == classes).astype(float)  # [K, n]
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def wilson(right) -> dict[str, float]:
    """right [n], 1 or 0 -> the share of ones with its 95 % interval (Wilson 1927): {"value", "low", "high"}."""
    low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {"value": float(right.mean()), "low": low, "high": high}


def average_precision(x, labels) -> float:
    """Average precision of yes/no labels [n] ranked by x [n]."""
    from sklearn.metrics import average_precision_score  # late: it takes a second

    return float(average_precision_score(labels, finite(x)))


def above_chance(right, labels) -> float:
    """right [n]: 0 wrong, 0.5 undecided, 1 right; labels [n]: number of each question's rule -> mean over rules of
    2 x accuracy - 1: 0 at chance, 1 if all are right."""
    return float(np.mean([2 * right[labels == kind].mean() - 1 for kind in np.unique(labels)]))


KINDS = {"": "cosines", "_centred": "centred", "_adapted": "adapted"}  # end of a metric's name -> kind of answer
ANSWERED = {"accuracy": (accuracy, "predictions"), "f1": (f1, "predictions"), "mcc": (mcc, "predictions")}
METRICS_OF = {  # kind of task -> metric -> (function, kind of answer); the last one with a lift is the headline
    "score": {f"{f.__name__}{end}": (f, kind) for end, kind in KINDS.items() for f in (pearson, spearman)}
    | {"pearson_maxsim": (pearson, "maxsim")},
    "paraphrase": {
        "average_precision": (average_precision, "cosines"),
        "accuracy_probe": (accuracy, "probe"),
        **ANSWERED,
    },
    "classification": ANSWERED,
    "order": {"order_concepts": (above_chance, "concepts"), "order": (above_chance, "pooled")},
}
METRICS = {metric: how for metrics in METRICS_OF.values() for metric, how in metrics.items()}
