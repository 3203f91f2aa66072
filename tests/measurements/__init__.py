"""Measurements: budgets and their baselines, the report, a comparison of two commits, a load test, and a million rows."""
