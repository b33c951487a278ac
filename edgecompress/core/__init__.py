"""What all parts share: errors, registry, result types, files, flatbuffer and Keras graph reading."""
