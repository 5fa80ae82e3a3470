"""Studies: programs that train and compare models through `train.py`, as a user would. Run in the repository's root."""
