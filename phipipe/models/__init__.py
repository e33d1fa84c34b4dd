"""What a checkpoint is: its files, its family, its tokenizer, the baseline layer by layer."""
