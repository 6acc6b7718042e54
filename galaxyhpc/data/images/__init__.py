"""From image files to pixels: HDF5, PNG, JPEG, TIFF, WebP and FITS as uint8 RGB, and images that are nearly the same.

Sources, with labels and positions beside the images, live in `data.sources`.
`predict` reads a user's own galaxies with the settings of the run (see `sources.unlabelled`).
"""
