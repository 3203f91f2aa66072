"""Exploration: every order of the steps of several processes, generated queries, and the check that no response was stale."""
