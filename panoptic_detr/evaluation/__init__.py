"""Panoptic Quality and average precision."""
