"""Matching, losses and the trainer."""
