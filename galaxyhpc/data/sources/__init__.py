"""Sources of galaxies: an HDF5 file, a catalogue of image files, a folder per class, or parquet with images inside.

Each gives the same `Source`: columns that are known before a pixel is read, and the images in order. `open_source`
chooses by what lies at the path; `conversion` writes any of them as the same memory-mapped array. `unlabelled` lists
galaxies to be classified, of the same kinds.
"""
