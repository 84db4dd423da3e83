"""Reading, checking, making and converting panoptic data sets."""
