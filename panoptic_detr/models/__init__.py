"""Backbones, detectors and the mask head."""
