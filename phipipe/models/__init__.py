"""What a checkpoint is: its files, its family, the rules that hold for it, the baseline."""
