"""What all parts share: errors, registry, results, files, flatbuffer and Keras graph reading."""
