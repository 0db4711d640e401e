"""Statistics: estimates with intervals over documents, moments, change points, ranks, probes. Independent of models."""
