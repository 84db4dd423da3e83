"""Settings of every recipe, one folder per data set; installed as `panoptic_detr.configs`."""
