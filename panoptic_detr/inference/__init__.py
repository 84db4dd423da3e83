"""From model outputs to one panoptic map."""
