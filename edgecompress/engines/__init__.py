"""The engines that run .tflite files, in separate processes."""
