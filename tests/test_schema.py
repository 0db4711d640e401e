"""Columns and units other people's notebooks read: changing one is a decision, not an accident."""

from depthscope.edit_registry import sweeps
from depthscope.schema import sweep as schema


def test_columns_are_frozen():
    assert list(schema.SWEEP_TABLE) == [
        "edit",
        "layer",
        "metric",
        "unit",
        "mean",
        "ci_low",
        "ci_high",
        "tokens",
        "documents",
    ]
    measured = ["kl", "agreement", "entropy", "loss"]
    assert list(schema.TOKEN_SHARD) == ["document", "position", "token", "next_token", "edit", "layer", *measured]
    assert list(schema.DOCUMENT_SHARD) == ["document", "edit", "layer", "tokens", *measured]


def test_edits_are_frozen():
    assert list(sweeps()) == ["swap", "drop", "drop_attn", "drop_mlp", "drop_ssm", "drop_ple"]


def test_metrics_are_frozen():
    assert {name: metric.unit for name, metric in schema.METRICS.items()} == {
        "kl": "nats",
        "agreement": "share",
        "entropy": "nats",
        "entropy_change": "nats",
        "loss": "nats",
        "loss_change": "nats",
    }
