"""Statistics: estimates with intervals over documents, moments, change points, ranks, probes. Knows nothing of models."""
