"""What all studies do: train ways to train with several seeds each, measure them, and compare them seed by seed."""
