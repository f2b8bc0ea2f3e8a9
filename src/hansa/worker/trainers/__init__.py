"""Trainers: a model with its optimizer, built from a version and options."""
