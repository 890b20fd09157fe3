"""Offline energy-optimal serving (Wilkins, Keshav and Mortier 2024, arXiv 2407.04014), and what it takes to go online.

``models`` has the paper's energy and runtime models, ``assignment`` the optimisation with its prices, ``lengths`` and
``dispatch`` make it an online rule for single queries, and ``agent`` one for a cluster of instances.
"""
