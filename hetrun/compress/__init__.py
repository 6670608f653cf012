"""`hetrun compress`: pruning and quantising the matrices of a model by what a calibration text puts through them."""
