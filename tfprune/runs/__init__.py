"""What a training that can be killed is made of: its settings, checkpoints, random numbers, finite weights."""
