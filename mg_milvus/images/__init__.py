"""Image files: find, decode, augment, thumbnails."""
