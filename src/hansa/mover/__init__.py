"""The data plane: files of a version or an update from one file system to another."""
