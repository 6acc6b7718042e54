"""Made-up tables of a report: networks as similar as those of a good sweep."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from galaxyhpc.analysis.statistics import is_pareto_optimal
from galaxyhpc.analysis.tables import Tables
from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.config.conditions import DEFAULT_CONDITIONS, get_parameter, get_severities, get_unit

STUDY_LABELS = ["CNN", "C1", "C4", "C8", "D4", "D8", "D4D4D1 e2wrn10-4", "C4 e2resnet18"]
CLASS_COUNTS = (13, 22, 31, 24, 5, 25, 22, 31, 16, 21)  # of the 210 test galaxies
ACCURACY_LOSS = {"clean": 0.0, "rotation": 0.10, "rotation_mean": 0.07, "rotation_control": 0.02, "pedestal_noise": 0.5}


def _make_conditions() -> pd.DataFrame:
    """Make a table of every condition and severity, with the accuracy loss of a network without a group."""
    rows: list[tuple[str, float, float, str, float]] = [("rotation_mean", 0.0, np.nan, "", 0.07)]
    for n, name in enumerate(DEFAULT_CONDITIONS):
        severities = get_severities(name)
        for i, severity in enumerate(severities):
            is_rotation = name.startswith("rotation")
            fraction = abs(np.sin(2 * np.pi * severity / 360)) if is_rotation else (i + 1) / len(severities)
            loss = ACCURACY_LOSS.get(name, 0.02 + 0.025 * n) * fraction
            rows.append((name, severity, get_parameter(name, severity), get_unit(name), loss))
    return pd.DataFrame(rows, columns=["condition", "severity", "parameter", "unit", "loss"])


def make_tables(labels: list[str] = STUDY_LABELS, seeds: int = 3, half_width: float = 0.05, flaw: str = "") -> Tables:
    """Make all tables of a sweep of 210 test galaxies; the first network has the flaw, the last lacks a seed."""
    networks = _make_networks(labels, seeds, half_width, flaw)
    summary = _make_summary(networks, half_width)
    scaled = pd.concat([_make_reliability(networks, flag) for flag in (False, True)])
    return Tables(
        summary=summary,
        networks=networks,
        per_class=_make_per_class(networks),
        confusion=_make_confusion(networks),
        reliability=scaled,
        comparisons=_make_comparisons(networks, half_width),
        corruption_error=_make_corruption_error(summary, labels[0]),
        attack=_make_attack(networks),
        training=_make_training(networks),
    )


def parse_group(label: str) -> str:
    first = label.split()[0]
    return first if first[0] in "CD" and first != "CNN" and first[1].isdigit() else ""


def _make_networks(labels: list[str], seeds: int, half_width: float, flaw: str) -> pd.DataFrame:
    n = len(labels)
    rng = np.random.default_rng(n)
    done = np.array([seeds] * (n - 1) + [max(seeds - 1, 1)])
    accuracy = 0.70 + 0.12 * np.linspace(0, 1, n) ** 0.5 + rng.normal(0, 0.01, n)
    width_factors = [4.0 if " " in label else 1.0 for label in labels]
    table = pd.DataFrame(
        {
            "label": labels,
            "arch": [label.partition(" ")[2] or "steerable_cnn" for label in labels],
            "group": [parse_group(label) for label in labels],
            "parameters": (400_000 * np.array(width_factors) * rng.uniform(0.9, 1.1, n)).astype(int),
            "multiply_adds": 3e8 * np.array(width_factors) * np.exp(rng.uniform(0, 3, n)),
            "label_fraction": 1.0,
            "seeds_done": done,
            "seeds_planned": seeds,
            "flaw": [flaw] + [""] * (n - 1),
            "accuracy_mean": accuracy,
            "ci_low": accuracy - half_width,
            "ci_high": accuracy + half_width,
            "mce": (1 - accuracy) / (1 - accuracy[0]),
            "mce_low": (1 - accuracy) / (1 - accuracy[0]) - 0.06,
            "mce_high": (1 - accuracy) / (1 - accuracy[0]) + 0.06,
        }
    )
    pareto = {
        f"pareto_{cost}": is_pareto_optimal(table[cost], table["accuracy_mean"])
        for cost in ("parameters", "multiply_adds")
    }
    return table.assign(**pareto)


def _make_summary(networks: pd.DataFrame, half_width: float) -> pd.DataFrame:
    columns = ["label", "arch", "group", "seeds_done", "seeds_planned", "accuracy_mean"]
    table = networks[columns].merge(_make_conditions(), how="cross")
    rng = np.random.default_rng(1)
    robust = table["group"].map(lambda g: 0.4 if g else 1.0)
    mean = (
        table["accuracy_mean"]
        - table.pop("loss") * robust
        + np.where(table["condition"] == "clean", 0, rng.normal(0, 0.004, len(table)))
    ).clip(0.1, 1)
    return table.assign(
        accuracy_mean=mean,
        accuracy_std=0.012,
        ci_low=(mean - half_width).clip(0, 1),
        ci_high=(mean + half_width).clip(0, 1),
        balanced_accuracy=mean - 0.03,
        macro_f1=mean - 0.04,
        nll=2.2 * (1 - mean),
        brier=1.4 * (1 - mean),
        ece=0.4 * (1 - mean),
        nll_scaled=2.0 * (1 - mean),
        brier_scaled=1.3 * (1 - mean),
        ece_scaled=0.15 * (1 - mean),
        consistency=np.where(table["condition"] == "clean", np.nan, (mean + 0.12).clip(0, 1)),
    )


def _make_per_class(networks: pd.DataFrame) -> pd.DataFrame:
    of_class = pd.DataFrame({"class": range(10), "name": GALAXY10_CLASSES, "support": CLASS_COUNTS})
    table = networks[["label", "accuracy_mean"]].merge(of_class, how="cross")
    recall = (table.pop("accuracy_mean") + 0.02 * (table["class"] - 5)).clip(0, 1)
    return table.assign(precision=recall, recall=recall, f1=recall, recall_low=recall - 0.1, recall_high=recall + 0.08)


def _make_confusion(networks: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    confusability = np.exp(-np.abs(np.subtract.outer(np.arange(10), np.arange(10))) / 1.5) * (1 - np.eye(10))
    parts = []
    for label, accuracy, seeds in networks[["label", "accuracy_mean", "seeds_done"]].itertuples(index=False):
        probabilities = (1 - accuracy) * confusability / confusability.sum(1, keepdims=True) + accuracy * np.eye(10)
        counts = np.array([rng.multinomial(n * seeds, p) for n, p in zip(CLASS_COUNTS, probabilities, strict=True)])
        truth, predicted = np.indices((10, 10))
        columns = {"truth": truth.ravel(), "predicted": predicted.ravel(), "count": counts.ravel()}
        parts.append(pd.DataFrame({"label": label, **columns}))
    return pd.concat(parts, ignore_index=True)


def _make_reliability(networks: pd.DataFrame, is_scaled: bool) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    parts = []
    for label in networks["label"]:
        galaxies = rng.multinomial(630, np.arange(15) ** 2.5 / (np.arange(15) ** 2.5).sum())
        confidence = (np.arange(15) + 0.5) / 15
        accuracy = np.clip(confidence ** (1.05 if is_scaled else 1.5) + rng.normal(0, 0.02, 15), 0, 1)
        mask = np.where(galaxies > 0, 1.0, np.nan)
        columns = {"galaxies": galaxies, "accuracy": accuracy * mask, "confidence": confidence * mask}
        parts.append(pd.DataFrame({"label": label, "scaled": is_scaled, "bin": range(15), **columns}))
    return pd.concat(parts, ignore_index=True)


def _make_comparisons(networks: pd.DataFrame, half_width: float) -> pd.DataFrame:
    accuracy = dict(zip(networks["label"], networks["accuracy_mean"], strict=True))
    rows = []
    for a, b in combinations(accuracy, 2):
        difference = accuracy[a] - accuracy[b]
        significant = abs(difference) > half_width
        rows.append((a, b, difference, 0.001 if significant else 0.4, significant))
    table = pd.DataFrame(rows, columns=["a", "b", "difference", "p_holm", "significant"])
    low, high = table["difference"] - half_width, table["difference"] + half_width
    return table.assign(ci_low=low, ci_high=high, seeds=3, only_a=20.0, only_b=12.0, p=table["p_holm"] / 5)


def _make_corruption_error(summary: pd.DataFrame, baseline: str) -> pd.DataFrame:
    errors = (1 - summary["accuracy_mean"]).groupby([summary["label"], summary["condition"]], sort=False).sum()
    ratio = (errors / errors[baseline].reindex(errors.index, level="condition")).rename("ce").reset_index()
    return ratio[~ratio["condition"].isin(["clean", "rotation_mean", "rotation_control"])]


def _make_attack(networks: pd.DataFrame) -> pd.DataFrame:
    budgets = pd.DataFrame({"budget": [50, 100, 200, 400, 800, 1600]})
    sets = pd.DataFrame({"set": ["own", "common"], "n": [160, 110]})
    table = networks[["label", "accuracy_mean"]].merge(sets, how="cross").merge(budgets, how="cross")
    rate = (1.02 - table.pop("accuracy_mean")) * np.log(table["budget"]) / 6
    return table.assign(
        successes=(rate * table["n"]).round(), rate=rate, low=(rate - 0.06).clip(0), high=rate + 0.07, seeds=3
    )


def _make_training(networks: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    epoch = np.arange(1, 31)
    parts = []
    for label, accuracy, seeds in networks[["label", "accuracy_mean", "seeds_done"]].itertuples(index=False):
        for seed in range(seeds):
            rise = 1 - np.exp(-epoch / 6)
            parts.append(
                pd.DataFrame(
                    {
                        "run_id": f"{label}-s{seed}",
                        "label": label,
                        "seed": seed,
                        "epoch": epoch,
                        "train_loss": 2.3 - 2 * rise,
                        "train_accuracy": 0.15 + 0.82 * rise,
                        "validation_loss": 2.3 - 1.6 * rise + rng.normal(0, 0.05, 30) + 0.01 * epoch,
                        "validation_accuracy": 0.15 + (accuracy - 0.15) * rise + rng.normal(0, 0.015, 30),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)
