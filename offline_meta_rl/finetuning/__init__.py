"""Online fine-tuning of meta-trained methods."""
