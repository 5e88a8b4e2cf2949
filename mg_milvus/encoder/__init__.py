"""Images to codes: backbone, pooling, hash heads; one ``.safetensors`` file."""
