"""What is remembered: under which key (`keys.py`), for how long it is true (`journal.py`), and how a read comes by it (`entries.py`)."""
