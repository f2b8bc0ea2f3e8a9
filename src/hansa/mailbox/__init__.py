"""The facility's directory: names, layout and atomic rules, shared by both sides."""
