"""What stands for the training, one file a kind; `make_training` chooses."""
