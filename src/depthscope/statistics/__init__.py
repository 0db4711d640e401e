"""Statistics: estimates with intervals over documents, moments, steps over layers, ranks, probes. Independent of models."""
