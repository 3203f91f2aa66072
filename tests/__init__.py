"""The product: what the service promises, one chapter a file. The folders have what the chapters are written with."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the project."""
