"""What a bundle is worth: sessions played through the device's own pipeline, and the report of it."""
