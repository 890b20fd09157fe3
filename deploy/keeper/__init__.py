"""The keeper: the one small process that writes power limits, and restores them when whoever asked for them is gone."""
