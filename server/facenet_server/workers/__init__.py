"""Worker processes: where the work of images and batches is done, and how the server talks with them."""
