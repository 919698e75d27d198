"""Images that stay where they are: finding them in folders, tars and Parquet shards, and indexing them for a manifest.

The rules, for every form alike:

- Grey is replicated to three channels (of 16-bit grey the upper 8 bits), CMYK and palettes are converted as Pillow
  does, transparency is dropped.
- The parameter ``turn_by_exif`` says whether images are turned and mirrored as their EXIF records say. The published
  protocols (ADM, LlamaGen, FVQ) ignore these records; for people's own photographs they should be heeded.
- An image that cannot be decoded whole (cut off, no image at all, pixels without a fixed range) stops the indexing, or
  is left out and counted, as the parameter ``unreadable`` says. A class of which no image is left is an error.
- Nothing is scaled or cropped, and tars are never unpacked: a manifest names the bytes of each image.
"""
