"""Controllers with one `predict`: heuristics and learned policies."""
