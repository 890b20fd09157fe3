"""Workloads: the request table, readers of published traces, generators and fitted defaults."""
